"""Numbers that the papers print, to set beside ours. Data only."""

Number = tuple[float, float]  # mean and standard deviation over 5 trials, in %
Printed = tuple[Number | None, ...]  # None for a column that the paper does not print
PrintedTable = dict[tuple[str, str], dict[str, Printed]]  # by data set and network, then by method


def _without_apgd_and_cw(nat: Number, pgd: Number, aa: Number) -> Printed:
    return nat, pgd, None, None, aa


# NAT, PGD (100 steps) and AA: MAIL paper, Table 1. LPS is GAIRAT's measure, "measure=pm-nat" is PM nat, the plain name PM adv.
MAIL_TABLE_1: PrintedTable = {
    ("cifar10", "resnet18"): {
        "gairat": _without_apgd_and_cw((82.26, 0.6), (54.14, 0.15), (36.32, 0.57)),
        "mail-at measure=pm-nat": _without_apgd_and_cw((82.5, 0.2), (55.0, 0.32), (44.25, 0.45)),
        "mail-at": _without_apgd_and_cw((83.15, 0.46), (55.25, 0.23), (44.1, 0.21)),
        "gair-mart": _without_apgd_and_cw((84.45, 0.17), (53.16, 0.26), (46.0, 0.26)),
        "mail-mart measure=pm-nat": _without_apgd_and_cw((83.75, 0.09), (53.63, 0.21), (46.7, 0.1)),
        "mail-mart": _without_apgd_and_cw((84.12, 0.46), (53.65, 0.23), (47.2, 0.21)),
        "gair-trades": _without_apgd_and_cw((78.52, 0.2), (51.67, 0.54), (44.4, 0.2)),
        "mail-trades measure=pm-nat": _without_apgd_and_cw((82.71, 0.52), (52.37, 0.65), (49.52, 0.11)),
        "mail-trades": _without_apgd_and_cw((80.49, 0.18), (53.67, 0.14), (50.6, 0.22)),
    },
}

# NAT, PGD (100 steps), APGD, CW and AA: MAIL paper, Tables 2 and 3. The NAT of AWP with WRN-32-10 is as printed there.
MAIL: PrintedTable = {
    ("cifar10", "resnet18"): {
        "at": ((84.86, 0.17), (48.91, 0.14), (47.7, 0.06), (51.61, 0.15), (44.9, 0.53)),
        "trades": ((84.0, 0.23), (52.66, 0.16), (52.37, 0.24), (52.3, 0.06), (48.1, 0.26)),
        "mart": ((82.28, 0.14), (53.5, 0.46), (52.73, 0.57), (51.59, 0.16), (48.4, 0.14)),
        "fat": ((87.97, 0.15), (46.78, 0.12), (46.68, 0.16), (49.92, 0.26), (43.9, 0.82)),
        "at+awp": ((85.17, 0.4), (52.63, 0.17), (50.4, 0.26), (51.39, 0.18), (47.0, 0.25)),
        "gairat": ((83.22, 0.06), (54.81, 0.15), (50.95, 0.49), (39.86, 0.08), (33.35, 0.57)),
        "mail-at": ((84.52, 0.46), (55.25, 0.23), (53.2, 0.38), (48.88, 0.11), (44.22, 0.21)),
        "mail-trades": ((81.84, 0.18), (53.68, 0.14), (52.92, 0.62), (52.89, 0.31), (50.6, 0.22)),
    },
    ("cifar10", "wrn-32-10"): {
        "at": ((87.8, 0.13), (49.43, 0.29), (49.12, 0.26), (53.38, 0.05), (48.46, 0.46)),
        "trades": ((86.36, 0.52), (54.88, 0.39), (55.02, 0.27), (56.18, 0.16), (53.4, 0.37)),
        "mart": ((84.76, 0.34), (55.61, 0.51), (55.4, 0.37), (54.72, 0.2), (51.4, 0.05)),
        "fat": ((89.7, 0.17), (48.79, 0.18), (48.72, 0.36), (52.39, 0.89), (47.48, 0.3)),
        "at+awp": ((57.55, 0.23), (54.17, 0.1), (54.2, 0.16), (55.18, 0.3), (53.08, 0.17)),
        "gairat": ((86.3, 0.61), (58.74, 0.46), (55.64, 0.36), (45.57, 0.18), (40.3, 0.16)),
        "mail-at": ((84.83, 0.39), (58.86, 0.25), (55.82, 0.31), (51.26, 0.2), (47.1, 0.22)),
        "mail-trades": ((84.0, 0.15), (57.4, 0.96), (56.96, 0.19), (56.2, 0.3), (53.9, 0.22)),
    },
}

# By the name of the table; "" for a comparison that is none of them, which is Table 2's for any data.
PRINTED: dict[str, PrintedTable] = {"": MAIL, "table1": MAIL_TABLE_1, "table2": MAIL, "table3": MAIL}
