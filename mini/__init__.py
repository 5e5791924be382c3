"""The embedded small world: real digits on softened photographs, in the real datasets' on-disk layouts (DESIGN §4)."""
