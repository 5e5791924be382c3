"""How are many squared-hinge SVMs over the same rows solved at once?

Objective. x̂ = (x, 1) and ŵ = (w, b), so the bias is regularised as liblinear does (protocols §2.6). With cᵢ = C·sᵢ,
0 for rows outside the task, F(ŵ) = ½|ŵ|² + Σ cᵢ ξᵢ², ξᵢ = max(0, 1 − yᵢ ŵ·x̂ᵢ). F is strongly convex and once
differentiable: g = ∇F = ŵ − Σ 2cᵢ yᵢ ξᵢ x̂ᵢ. Its generalised Hessian H = I + X̂ᵀ D X̂ has D = diag(2cᵢ) on the active
rows A (ξᵢ > 0) and 0 elsewhere: F is quadratic as long as A stays.

Kernel form. Every iterate is ŵ = X̂ᵀα, so all that is needed is K = X̂X̂ᵀ (m × m) and f = Kα, the scores. A product
then costs 2m², whatever the number of features, against 4mD in the primal; m < 2D wherever this is used. With
r = α − 2c·y·ξ: g = X̂ᵀr and |g|² = r·Kr, so that the product q = Kr is both the convergence measure and, as shown next,
the right-hand side.

Newton. H d = −g with d = X̂ᵀδ holds if (I + DK)δ = −r. Put δ = −r + ε. Rows outside A have D = 0, hence ε = 0; on A
    (D⁻¹ + K_AA) ε = q_A.
If A does not change, ŵ + d is the exact minimum. Otherwise F along d is a piecewise quadratic whose derivative
φ'(t) = α·u + t δ·u − Σ 2cᵢ vᵢ max(0, 1 − yᵢfᵢ − t vᵢ), u = Kδ, v = y·u, rises piecewise linearly: no product is needed
to find its root. t = 1 is kept where φ'(1) ≤ φ'(0)/10 in size or still negative, and F does not rise; else the root is
taken (without it some fits at C = 100 took twice as many steps). Each step so decreases F, there are finitely many A,
and the last step on the right A is exact: the modified finite Newton method (Keerthi & DeCoste 2005; Chapelle 2007 has
the kernel form).

Solving for ε. (a) Directly, by Cholesky of K_AA, where A is small: large costs. (b) By conjugate gradients, all columns
stacked, on the scaled matrix M = I + hKh, h = D^½, preconditioned by P = I + hΦΦᵀh, where ΦΦᵀ is the part of K in its
leading p eigenvectors (found once for all tasks by subspace iteration). P is inverted by Woodbury:
P⁻¹ = I − hΦ(I + ΦᵀDΦ)⁻¹Φᵀh; the p × p matrices of all columns come from one product of D with the pairwise products of
Φ's columns. As 0 ≼ K − ΦΦᵀ ≼ λ, the next eigenvalue, P ≼ M ≼ P + λh²: the condition number of P⁻¹M is at most
1 + λ·max 2c for *every* active set, fold and class. It is near 1 for small costs (one or two products a fit), and where
it is large A is small. The model's gradient |X̂ᵀhρ| for a residual ρ is at most (|Φᵀhρ|² + λ|hρ|²)^½, which comes free
with P⁻¹ρ: iteration stops where this is a tenth of |g|. (a) or (b) is chosen by counting operations, never by a clock.

Along the costs. Columns start from the previous, smaller cost's α times √t, where t minimises F(tα) for the new cost.
t itself makes A too small: 7 steps at C = 100 instead of 4.
Precision. fp32 is iterative refinement: K is formed in fp64 too; α, f and r are kept in fp64, and fp32 is what corrects
them. At C = 100 α has entries of 2C while f is about 1: with α in fp32 some fits stopped at 1e-3 of |∇F(0)|, with f
in fp32 at 1e-4.
Convergence: |∇F(ŵ)| ≤ tolerance · |∇F(0)|. Strong convexity turns it into an error: |ŵ − ŵ*| ≤ |∇F(ŵ)|.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RANK = 64  # leading eigenvectors in the preconditioner
OVERSAMPLING = 16  # further directions in the subspace iteration
FORCING = 0.1  # the model's gradient that ends conjugate gradients, relative to the gradient
CG_LIMIT = 1000  # a direction that is not exact by then is used as it is; the line search copes
WAVE_RATIO, WAVE_COLUMNS = 64.0, 16  # costs solved together: at most so far apart, so many columns
DIRECT_COST = 2.5  # time of an operation in Cholesky and of its gather, relative to one in a stacked product
DRIFT = 0.1  # from this 2c on, scores are formed anew, in fp64, after a step: r multiplies their rounding by 2c
DENSE_ELEMENTS = 1 << 24  # of the stacked small systems that are factorised together


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """The leading part of K: phi (N, p) with phi·phiᵀ ≼ K, and the largest eigenvalue of what it leaves."""

    phi: Tensor
    rest: float


def sketch(kernel: Tensor) -> Sketch:
    """The leading RANK eigenpairs of `kernel` (N, N) by subspace iteration from a fixed start."""
    rows = len(kernel)
    width, rank = min(rows, RANK + OVERSAMPLING), min(rows, RANK)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    basis = start.to(kernel)
    for _ in range(3):
        basis = torch.linalg.qr(kernel @ basis)[0]
    small = basis.T @ (kernel @ basis)
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    values, vectors = values.flip(0), vectors.flip(1)
    phi = (basis @ vectors[:, :rank]) * values[:rank].clamp_min(0).sqrt()
    return Sketch(phi=phi, rest=0.0 if rank == rows else max(0.0, float(values[rank - 1])))


class SharedKernel:
    """K of the rows that all columns of a block share: (m, m), `exact` in fp64; the arithmetic is the sketch's."""

    def __init__(self, exact: Tensor, leading: Sketch) -> None:
        self.exact, self.kernel = exact, exact.to(leading.phi.dtype)
        self.phi, self.rest = leading.phi, leading.rest
        kernel = self.kernel
        rank = self.phi.shape[1]
        i, j = torch.triu_indices(rank, rank, device=kernel.device)
        self.pairs = self.phi[:, i] * self.phi[:, j]  # (m, p(p+1)/2)
        unpack = torch.empty(rank, rank, dtype=torch.int64, device=kernel.device)
        unpack[i, j] = unpack[j, i] = torch.arange(len(i), device=kernel.device)
        self.unpack = unpack.reshape(-1)

    def product(self, vectors: Tensor, columns: Tensor) -> Tensor:
        return vectors @ self.kernel  # K is symmetric

    def scores(self, alpha: Tensor, columns: Tensor) -> Tensor:
        return alpha @ self.exact

    def solve(self, h: Tensor, q: Tensor, target: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """(ε, Kε), each (n, m), for the active rows h > 0. target: (n,) the model's gradient to reach."""
        active, kappa = (h > 0).sum(1).double(), 1 + self.rest * h.double().square().amax(1)
        iterations = 1 + 0.5 * kappa.sqrt() * math.log(2 / FORCING)
        direct = DIRECT_COST * active**3 / 3 + 10 * active**2 < iterations * 2 * h.shape[1] ** 2
        epsilon, k_epsilon = torch.zeros_like(q), torch.empty_like(q)
        for row in direct.nonzero()[:, 0].tolist():
            direct[row] = self._direct(h[row], q[row], epsilon[row])
        if direct.any():
            k_epsilon[direct] = epsilon[direct] @ self.kernel
        iterated = ~direct
        if iterated.any():
            epsilon[iterated], k_epsilon[iterated] = self._iterate(h[iterated], q[iterated], target[iterated])
        return epsilon, k_epsilon

    def _direct(self, h: Tensor, q: Tensor, epsilon: Tensor) -> bool:
        """Write ε into `epsilon`; False where rounding made K_AA + D⁻¹ indefinite."""
        on = h.nonzero()[:, 0]
        matrix = self.kernel[on[:, None], on]
        matrix.diagonal().add_(h[on] ** -2)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):
            return False
        epsilon[on] = torch.cholesky_solve(q[on, None], factor)[:, 0]
        return True

    def _iterate(self, h: Tensor, q: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Preconditioned conjugate gradients on (I + hKh) η = h q, ε = hη; finished columns leave the stack."""
        rank = self.phi.shape[1]
        inner = ((h * h) @ self.pairs)[:, self.unpack].reshape(len(h), rank, rank)
        inner.diagonal(dim1=1, dim2=2).add_(1)
        factor, failed = torch.linalg.cholesky_ex(inner)
        inverse = torch.where(failed[:, None, None] == 0, torch.cholesky_inverse(factor), 0)  # else P = I
        solution, k_solution = torch.empty_like(q), torch.empty_like(q)
        columns = torch.arange(len(h), device=h.device)
        eta, k_epsilon, residual = torch.zeros_like(q), torch.zeros_like(q), h * q
        z, _ = self._precondition(h, residual, inverse)
        direction, rz = z, (residual * z).sum(1)
        for iteration in range(1, CG_LIMIT + 1):
            step = h * direction
            k_step = step @ self.kernel
            m_direction = direction + h * k_step
            length = torch.where(rz > 0, rz / (direction * m_direction).sum(1), 0)[:, None]  # 0/0: already exact
            eta = eta + length * direction
            k_epsilon = k_epsilon + length * k_step
            residual = residual - length * m_direction
            z, bound = self._precondition(h, residual, inverse)
            done = (bound <= target) | (rz <= 0) | (iteration == CG_LIMIT)
            if done.any():
                solution[columns[done]], k_solution[columns[done]] = (h * eta)[done], k_epsilon[done]
                left = ~done
                if not left.any():
                    break
                columns, h, eta, k_epsilon, residual, z, direction, rz, target, inverse = (
                    part[left] for part in (columns, h, eta, k_epsilon, residual, z, direction, rz, target, inverse)
                )
            new = (residual * z).sum(1)
            direction, rz = z + (new / rz)[:, None] * direction, new
        return solution, k_solution

    def _precondition(self, h: Tensor, residual: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """P⁻¹ρ (n, m) and the bound (n,) on the model's gradient."""
        scaled = h * residual
        low = scaled @ self.phi
        bound = (low.square().sum(1) + self.rest * scaled.square().sum(1)).sqrt()
        return residual - h * (torch.bmm(inverse, low[:, :, None])[:, :, 0] @ self.phi.T), bound


class StackedKernels:
    """A small K for each column: (n, m, m), `exact` in fp64. Everything is solved directly, in `dtype`."""

    def __init__(self, exact: Tensor, dtype: torch.dtype) -> None:
        self.exact, self.kernels = exact, exact.to(dtype)

    def product(self, vectors: Tensor, columns: Tensor) -> Tensor:
        kernels = self.kernels if len(columns) == len(self.kernels) else self.kernels[columns]
        return torch.bmm(kernels, vectors[:, :, None])[:, :, 0]

    def scores(self, alpha: Tensor, columns: Tensor) -> Tensor:
        return torch.bmm(self.exact[columns], alpha[:, :, None])[:, :, 0]

    def solve(self, h: Tensor, q: Tensor, target: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        epsilon = torch.empty_like(q)
        size = max(1, DENSE_ELEMENTS // h.shape[1] ** 2)
        for part in range(0, len(h), size):
            rows = slice(part, part + size)
            scale = h[rows]
            matrix = self.kernels[columns[rows]] * scale[:, :, None] * scale[:, None, :]
            matrix.diagonal(dim1=1, dim2=2).add_(1)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            found = scale * torch.cholesky_solve((scale * q[rows])[:, :, None], factor)[:, :, 0]
            epsilon[rows] = torch.where(failed[:, None] == 0, found, 0)  # else down the gradient
        return epsilon, self.product(epsilon, columns)


Kernel = SharedKernel | StackedKernels


@dataclass(kw_only=True)
class Solved:
    """One row a column: alpha and scores f = Kα (n, m) in fp64; Newton steps (n,); relative gradient (n,)."""

    alpha: Tensor
    scores: Tensor
    iterations: Tensor
    gradient: Tensor


def gradient_at_zero(kernel: Kernel, signs: Tensor, weights: Tensor) -> Tensor:
    """(n,) |∇F(0)| at C = 1. Where it cancels to rounding error, the size of what cancels times that error."""
    pull = 2 * weights * signs
    columns = torch.arange(len(signs), device=signs.device)
    norm = (pull * kernel.product(pull, columns)).sum(1).clamp_min(0).sqrt()
    return norm.maximum(100 * torch.finfo(norm.dtype).eps * pull.abs().sum(1))


def newton(
    kernel: Kernel,
    signs: Tensor,
    twice_costs: Tensor,
    alpha: Tensor,
    scores: Tensor,
    *,
    unit: Tensor,
    tolerance: float,
    max_iterations: int,
) -> Solved:
    """Every column to |∇F| ≤ tolerance·unit, or as far as `max_iterations` steps bring it.

    alpha, scores: (n, m) fp64, the start.
    signs: (n, m) ±1, 0 outside the task. twice_costs: (n, m) 2C·s, 0 outside the task. unit: (n,) |∇F(0)|.
    """
    solved = Solved(
        alpha=torch.empty_like(alpha),
        scores=torch.empty_like(scores),
        iterations=torch.zeros(len(alpha), dtype=torch.int64, device=alpha.device),
        gradient=torch.empty_like(unit),
    )
    columns = torch.arange(len(alpha), device=alpha.device)
    for iteration in range(max_iterations + 1):
        slack = (1 - signs * scores).clamp_min(0)
        r = (alpha - twice_costs * signs * slack).to(unit.dtype)
        q = kernel.product(r, columns)
        gradient = (r * q).sum(1).clamp_min(0).sqrt()
        done = (gradient <= tolerance * unit) | (iteration == max_iterations)
        if done.any():
            ended = columns[done]
            solved.alpha[ended], solved.scores[ended] = alpha[done], scores[done]
            solved.iterations[ended], solved.gradient[ended] = iteration, (gradient / unit)[done]
            left = ~done
            if not left.any():
                break
            columns, signs, twice_costs, alpha, scores, unit, slack, r, q, gradient = (
                part[left] for part in (columns, signs, twice_costs, alpha, scores, unit, slack, r, q, gradient)
            )
        h = torch.where(slack > 0, twice_costs, 0).sqrt()
        target = torch.maximum(FORCING * gradient, 0.3 * tolerance * unit)
        epsilon, k_epsilon = kernel.solve(h, q, target, columns)
        delta, u = epsilon - r, k_epsilon - q
        uphill = ~((r * u).sum(1) < 0)  # only rounding can do this; then go down the gradient
        delta, u = torch.where(uphill[:, None], -r, delta), torch.where(uphill[:, None], -q, u)
        length = _step_lengths(alpha, delta, u, signs * scores, signs * u, twice_costs)[:, None]
        alpha, scores = alpha + length * delta, scores + length * u
        drifts = twice_costs.amax(1) > DRIFT
        scores[drifts] = kernel.scores(alpha[drifts], columns[drifts])
    return solved


def _step_lengths(alpha: Tensor, delta: Tensor, u: Tensor, margins: Tensor, v: Tensor, twice_costs: Tensor) -> Tensor:
    """(n,) t: 1 where that is near enough the minimum of F along δ, else the minimum."""
    linear, square, slack = (alpha * u).sum(1), (delta * u).sum(1), 1 - margins
    old, new = slack.clamp_min(0), (slack - v).clamp_min(0)
    slope_0 = linear - (twice_costs * v * old).sum(1)
    slope_1 = linear + square - (twice_costs * v * new).sum(1)
    change = linear + square / 2 + (twice_costs * (new - old) * (new + old)).sum(1) / 2
    hard = (slope_1 > 0.1 * slope_0.abs()) | ((slope_1 > 0) & (change > 0))
    length = torch.ones_like(linear)
    if hard.any():
        length[hard] = line_minimum(linear[hard], square[hard], slack[hard], v[hard], twice_costs[hard])
    return length


def line_minimum(linear: Tensor, square: Tensor, slack: Tensor, v: Tensor, twice_costs: Tensor) -> Tensor:
    """(n,) t > 0 with linear + t·square − Σ twice_costs·v·max(0, slack − t·v) = 0, by Newton within a bracket."""
    t, low, high = torch.ones_like(linear), torch.zeros_like(linear), torch.full_like(linear, math.inf)
    for _ in range(60):
        left = slack - t[:, None] * v
        pull = torch.where(left > 0, twice_costs * v, 0)
        slope = linear + t * square - (pull * left).sum(1)
        curvature = square + (pull * v).sum(1)
        low, high = torch.where(slope < 0, t, low), torch.where(slope > 0, t, high)
        new = t - slope / curvature
        middle = torch.where(high.isinf(), 2 * t, (low + high) / 2)
        new = torch.where((new > low) & (new < high), new, middle)
        new = torch.where(slope == 0, t, new)
        settled = (new - t).abs() <= 1e-4 * t
        t = new
        if settled.all():
            break
    return t


def waves(costs: Sequence[float], columns: int) -> list[list[int]]:
    """The costs' positions by rising cost, in groups solved together: few columns alone make slow products."""
    groups: list[list[int]] = []
    for index in sorted(range(len(costs)), key=lambda i: costs[i]):
        first = costs[groups[-1][0]] if groups else 0.0
        if groups and costs[index] <= WAVE_RATIO * first and (len(groups[-1]) + 1) * columns <= WAVE_COLUMNS:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def solve_path(
    kernel: Kernel,
    signs: Tensor,
    weights: Tensor,
    costs: Sequence[float],
    *,
    tolerance: float,
    max_iterations: int,
    together: bool,
) -> dict[int, Solved]:
    """Every task at every cost, from the smallest cost to the largest: position in `costs` → (t, m) Solved.

    signs, weights: (t, m) labels and sᵢ, 0 outside the task. together: neighbouring costs may share a stack.
    """
    tasks, rows = signs.shape
    unit = gradient_at_zero(kernel, signs, weights)
    alpha = torch.zeros_like(signs, dtype=torch.float64)
    scores = torch.zeros_like(alpha)
    found: dict[int, Solved] = {}
    for wave in waves(costs, tasks if together else WAVE_COLUMNS):
        cost = torch.tensor([costs[i] for i in wave], dtype=signs.dtype, device=signs.device).repeat_interleave(tasks)
        many = [part.repeat(len(wave), 1) for part in (signs, weights, alpha, scores)]
        twice_costs, start, start_scores = 2 * cost[:, None] * many[1], many[2], many[3]
        if found:
            norm = (start * start_scores).sum(1)
            ones = torch.ones_like(start)
            scale = line_minimum(torch.zeros_like(norm), norm, ones, many[0] * start_scores, twice_costs).sqrt()[
                :, None
            ]
            start, start_scores = scale * start, scale * start_scores
        solved = newton(
            kernel,
            many[0],
            twice_costs,
            start,
            start_scores,
            unit=cost * unit.repeat(len(wave)),
            tolerance=tolerance,
            max_iterations=max_iterations,
        )
        parts = [
            part.reshape(len(wave), tasks, *part.shape[1:])
            for part in (solved.alpha, solved.scores, solved.iterations, solved.gradient)
        ]
        for position, index in enumerate(wave):
            found[index] = Solved(
                alpha=parts[0][position],
                scores=parts[1][position],
                iterations=parts[2][position],
                gradient=parts[3][position],
            )
        alpha, scores = parts[0][-1], parts[1][-1]
    return found
