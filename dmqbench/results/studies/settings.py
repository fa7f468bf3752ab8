"""What jobs share, and what tells them apart, in words."""

from collections.abc import Mapping, Sequence

from dmqbench.results.result import Result


def setting_of(row: Result) -> dict[str, str]:
    """Return model, bits, ranges, budget and seed of a job; "" for what is not known."""
    budget = row.budget_sizes["name"]
    return {
        "model": row.model,
        "bits": row.bits,
        "ranges": f"ranges {row.ranges}" if row.ranges else "",
        "budget": f"budget {budget}" if budget else "",
        "seed": f"seed {row.seed}",
    }


def told_apart(parts: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], list[str]]:
    """Return what all of ``parts``, of which there is one at least, have in common, and of each what sets it apart."""
    keys = dict.fromkeys(key for part in parts for key in part)
    varying = [key for key in keys if len({part.get(key) for part in parts}) > 1]
    shared = {key: parts[0][key] for key in keys if key not in varying}
    return shared, [", ".join(part[key] for key in varying if part.get(key)) for part in parts]
