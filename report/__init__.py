"""From result records and published numbers to the page. Imports `zoo` only, and no torch."""
