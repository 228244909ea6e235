"""Plain twins of the methods, to be read beside their papers: one client, one step after another.

They share no code with the engine. `batches(t, k)` gives what client k trains on in round t, as
the package draws it; all parameters are whole tables.

Letters: w the parameters by name, S a cohort, n_k examples of client k, eta the learning rate.
"""

import torch


def gradient(w, batch, loss):
    """The gradient of the loss of a batch, by name."""
    leaves = {name: value.detach().requires_grad_() for name, value in w.items()}
    found = torch.autograd.grad(loss(leaves, batch), list(leaves.values()))
    return dict(zip(w, found, strict=True))


def mean(trees, weights):
    """The weighted mean of several trees."""
    total = sum(weights)
    return {
        name: sum(a / total * tree[name] for a, tree in zip(weights, trees, strict=True))
        for name in trees[0]
    }


def fedprox(w, cohorts, n, batches, loss, eta, mu):
    """FedProx: each client minimises F_k(w) + mu / 2 |w - w^t|^2. Li et al. 2020, algorithm 2."""
    for t, cohort in enumerate(cohorts, 1):
        trained = []
        for k in cohort:
            own = w
            for batch in batches(t, k):
                g = gradient(own, batch, loss)
                own = {a: own[a] - eta * (g[a] + mu * (own[a] - w[a])) for a in w}
            trained.append(own)
        w = mean(trained, [n[k] for k in cohort])
        yield w


def scaffold(w, cohorts, n, batches, loss, eta):
    """SCAFFOLD, option II. Karimireddy et al. 2020, algorithm 1.

    Clients weigh by their examples.
    """
    c = {a: torch.zeros_like(v) for a, v in w.items()}
    own_c = {}
    for t, cohort in enumerate(cohorts, 1):
        deltas, changes, weights = [], [], [n[k] for k in cohort]
        for k in cohort:
            c_k = own_c.get(k, {a: torch.zeros_like(v) for a, v in w.items()})
            y, steps = w, 0
            for batch in batches(t, k):
                g = gradient(y, batch, loss)
                y = {a: y[a] - eta * (g[a] - c_k[a] + c[a]) for a in w}
                steps += 1
            own_c[k] = {a: c_k[a] - c[a] + (w[a] - y[a]) / (steps * eta) for a in w}
            deltas.append({a: y[a] - w[a] for a in w})
            changes.append({a: own_c[k][a] - c_k[a] for a in w})
        share = sum(weights) / sum(n)
        step, change = mean(deltas, weights), mean(changes, weights)
        w = {a: w[a] + step[a] for a in w}
        c = {a: c[a] + share * change[a] for a in w}
        yield w


def maml(w, cohorts, n, tasks, loss, eta, steps, beta):
    """Per-FedAvg, full second order. Finn et al. 2017, algorithm 1; Fallah et al. 2020.

    tasks(t, k): (support, query) of client k. eta: the step of adaptation; beta: the server's.
    """
    for t, cohort in enumerate(cohorts, 1):
        moves = []
        for k in cohort:
            support, query = tasks(t, k)
            leaves = {a: v.detach().requires_grad_() for a, v in w.items()}
            phi = leaves
            for _ in range(steps):
                g = torch.autograd.grad(loss(phi, support), list(phi.values()), create_graph=True)
                phi = {a: v - eta * d for (a, v), d in zip(phi.items(), g, strict=True)}
            g = torch.autograd.grad(loss(phi, query), list(leaves.values()))
            moves.append({a: -d for a, d in zip(w, g, strict=True)})
        move = mean(moves, [n[k] for k in cohort])
        w = {a: w[a] + beta * move[a] for a in w}
        yield w


def dp_fedavg(w, cohorts, expected, batches, loss, eta, clip, noise):
    """DP-FedAvg: McMahan et al. 2018, algorithm 1, with the fixed denominator q N = expected.

    noise(t, name) -> what is added to the sum of clipped updates.
    """
    for t, cohort in enumerate(cohorts, 1):
        total = {a: torch.zeros_like(v) for a, v in w.items()}
        for k in cohort:
            own = w
            for batch in batches(t, k):
                g = gradient(own, batch, loss)
                own = {a: own[a] - eta * g[a] for a in w}
            delta = {a: own[a] - w[a] for a in w}
            length = sum(d.square().sum() for d in delta.values()).sqrt()
            factor = min(1.0, float(clip / length))
            total = {a: total[a] + factor * delta[a] for a in w}
        w = {a: w[a] + (total[a] + noise(t, a)) / expected for a in w}
        yield w


def ials(q, cohorts, clicks, w0, reg, eta):
    """Federated iALS: users solve their vectors, the server goes by the items' gradients.

    Ammad-ud-din et al. 2019, algorithm 1, on the loss of Rendle et al. 2022, eq. 3 and 12 (nu = 1);
    an item's step is the gradient over a curvature, as fedlab/algorithms/implicit.py has it. q (I,
    D): the items' vectors. clicks[k]: items of user k.
    """
    items, dim = q.shape
    eye, last, seen, outer = torch.eye(dim), torch.zeros_like(q), None, None
    for t, cohort in enumerate(cohorts, 1):
        gradient_sum, outer_sum, seen_sum = torch.zeros_like(q), 0 * eye, torch.zeros(items)
        for k in cohort:
            own = q[clicks[k]]
            strength = reg * (len(own) + w0 * items)
            left = own.T @ own + w0 * q.T @ q + strength * eye
            p = torch.linalg.solve(left, own.sum(0))
            gradient_sum[clicks[k]] += (1 - own @ p)[:, None] * p - reg * own
            gradient_sum -= w0 * (q @ p)[:, None] * p + w0 * reg * q
            outer_sum += p[:, None] * p
            seen_sum[clicks[k]] += 1
        gradient, now, met = (s / len(cohort) for s in (gradient_sum, outer_sum, seen_sum))
        share = len(cohort) / len(clicks)
        size, part = max(share, t**-0.5), max(share, 1 / t)
        outer = now if t == 1 else (1 - size) * outer + size * now
        seen = met if t == 1 else (1 - part) * seen + part * met
        step = torch.zeros_like(q)
        for i in range(items):
            curvature = (5 * seen[i] + w0) * (outer + reg * eye)
            step[i] = torch.linalg.solve(curvature, gradient[i])
            step[i] *= min(1.0, 1 / float(step[i].norm()))
        last = size * step + 0.5 * share * last
        q = q + eta * last
        yield q
