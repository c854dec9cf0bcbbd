"""Which recipe to use: for the lowest latency, the highest throughput, the least memory, under an accuracy floor.

Taught in notebooks/09_hardware_limit.ipynb.
"""

import pandas as pd

GOALS = {  # goal -> (column, whether more is better)
    "lowest latency": ("p50_ms", False),
    "highest throughput": ("images_per_s", True),
    "least memory": ("peak_mib", False),
}


def advise(rows: pd.DataFrame, *, accuracy_floor: float) -> pd.DataFrame:
    """Choose the best measured recipe for each goal.

    Args:
        rows: one row a recipe and batch: recipe, batch, p50_ms, images_per_s, agreement (share of inputs on which it
            finds the reference's class, 0 to 1) and peak_mib; NaN where something was not measured.
        accuracy_floor: recipes with a lower agreement, or an unknown one, are left out.
    Returns:
        One row a goal: recipe, batch and the rows' numbers; a goal that nothing was measured for says so.
    Raises:
        ValueError: if the floor is not within 0 to 1, or no recipe reaches it.
    """
    if not 0 <= accuracy_floor <= 1:
        raise ValueError(f"The accuracy floor is {accuracy_floor}; it must be from 0 to 1.")
    allowed = rows[rows["agreement"] >= accuracy_floor]
    if allowed.empty:
        best = rows["agreement"].max()
        raise ValueError(f"No recipe reaches an agreement of {accuracy_floor:.1%}; the best has {best:.1%}.")
    advice = {}
    for goal, (column, more) in GOALS.items():
        known = allowed.dropna(subset=[column])
        if known.empty:
            advice[goal] = {"recipe": "not measured"}
        else:
            advice[goal] = known.loc[known[column].idxmax() if more else known[column].idxmin()]
    return pd.DataFrame(advice).T[["recipe", "batch", "p50_ms", "images_per_s", "peak_mib", "agreement"]]
