"""Studies: experiments of the papers on any data, each with its claim, result, table and picture."""

from importlib import import_module
from typing import TYPE_CHECKING

from lazy_loader import attach

from hauberk.core.errors import unknown_name

if TYPE_CHECKING:
    from hauberk.experiments.studies.context import StudyContext as StudyContext
    from hauberk.experiments.studies.context import Variant as Variant
    from hauberk.experiments.studies.masks import accuracies as accuracies
    from hauberk.experiments.studies.plan import PlannedNetwork as PlannedNetwork
    from hauberk.experiments.studies.plan import StudyPlan as StudyPlan
    from hauberk.experiments.studies.plan import plan_studies as plan_studies
    from hauberk.experiments.studies.result import StudyResult as StudyResult
    from hauberk.experiments.studies.study import Study as Study
    from hauberk.experiments.studies.verdict import difference_of as difference_of
    from hauberk.experiments.studies.verdict import sentence as sentence

# Loaded when first used, so that the command lists studies without torch.
_LAZY = {
    "context": ["StudyContext", "Variant"],
    "masks": ["accuracies"],
    "plan": ["PlannedNetwork", "StudyPlan", "plan_studies"],
    "result": ["StudyResult"],
    "study": ["Study"],
    "verdict": ["difference_of", "sentence"],
}
__getattr__, _, _lazy = attach(__name__, submod_attrs=_LAZY)
__all__ = [*_lazy, "STUDIES", "find_study"]

# By name: what it looks at, what its source claims, and the file of the study: "a-b" is the function ``a_b`` there, with
# ``draw_a_b`` beside it.
STUDIES = {
    "path-dependence": (
        "PGD against LM-PGD: loss curves, and the least steps each needs (MAIL, Figure 1a)",
        "LPS depends on the attack's path: PGD gets stuck and takes an example for robust that LM-PGD, from the same start, "
        "breaks (Wang et al. 2021, Section 3.1, Figure 1a). LM-PGD is our construction, as the paper's is not public.",
        "attack_paths",
    ),
    "lps-vs-pm": (
        "how many examples have each LPS, which are critical; margins by LPS (MAIL, Figures 1b and 4)",
        "LPS takes few values; examples with the largest, which no step of PGD breaks, still contain critical ones; margins "
        "differ little between large LPS and spread widely within each (Wang et al. 2021, Section 3.1, Figures 1b and 4).",
        "margins",
    ),
    "subsets": (
        "leave misclassified or other examples unperturbed, attack them weakly, or regularise them (MART, Figure 1)",
        "Robustness drops if misclassified examples (S-) stay unperturbed in adversarial training, and little if as many "
        "others (S+) do; a weak attack on S- costs almost nothing, one on S+ does; regularising S- gains, and more than "
        "regularising S+ (Wang et al. 2020, Section 1, Figure 1).",
        "misclassified",
    ),
    "ablation": (
        "take parts of MART's loss away, replace them, or use them on a share of the data (MART, Section 3.1)",
        "Without 1 - p, without KL, or without both, MART is less robust; so it is with CE for BCE, and with BCE on clean "
        "inputs; KL as the inner loss gains nothing; the more of the data is regularised, the more robust; KL relieves late "
        "over-fitting, which BCE on clean inputs suffers from, too (Wang et al. 2020, Section 3.1).",
        "ablation",
    ),
    "beta-sensitivity": (
        "how much the trade-off parameter β matters to MART and TRADES (λ in MART, Section 3.1)",
        "For β (λ in the paper) from 1/2 to 50, MART is always more robust than TRADES, and varies less (Wang et al. 2020, "
        "Section 3.1).",
        "trade_off",
    ),
    "weights": (
        "slope and bias of MAIL's weights (MAIL, Equation 8)",
        "The bias says how many examples get large weights, the slope how sharply weights change around it (Wang et al. "
        "2021, Equation 8); with 10 and -0.5 MAIL-AT is more robust than AT to PGD (Section 4, Table 2).",
        "mail_weights",
    ),
    "burn-in": (
        "when MAIL begins to weigh (MAIL, Section 3.2)",
        "Weights computed before the network has learnt enough may mislead the training; so they are 1 at first, until the "
        "learning rate drops (Wang et al. 2021, Section 3.2).",
        "mail_weights",
    ),
    "restarts": (
        "final losses of PGD over random starts, standard against robust network (Madry et al. 2018)",
        "Final losses of PGD from many random starts are concentrated, without outliers, and for adversarially trained "
        "networks far smaller and less varied than for standard ones (Madry et al. 2018, Section 3; lecture notes); so a "
        "few restarts find what many do.",
        "attack_paths",
    ),
    "large-epsilon": (
        "whether large perturbations of a robust network look like another class (lecture notes)",
        "A large perturbation made on a robust network tends to show salient characteristics of the class it is then taken "
        "for; one made on a standard network does not (lecture notes on adversarial training).",
        "perturbations",
    ),
    "saliency": (
        "input gradients of a standard and a robust network (lecture notes)",
        "Saliency maps of robust networks are easier to understand for human eyes (lecture notes on adversarial training).",
        "perturbations",
    ),
    "trade-off": (
        "clean against robust accuracy over methods and trade-off parameters (TRADES, lecture notes)",
        "Adversarial training costs accuracy on clean data (lecture notes); a larger β of TRADES (1/λ in the paper) buys "
        "robustness with more of it (Zhang et al. 2019).",
        "trade_off",
    ),
    "imbalance": (
        "robust accuracy of rare classes (note on MART)",
        "MART's weights help most where classes are imbalanced (note on MART, summary).",
        "difficulty",
    ),
    "transfer": (
        "perturbations of one network tried on another: the black-box matrix (MART, MAIL)",
        "Black-box attacks are relatively easy to defend against (Wang et al. 2021, Section 4.1), by robust networks.",
        "perturbations",
    ),
    "margins": (
        "training examples by two probabilities: safe, boundary and wrong areas (MAIL, Figures 2 and 3)",
        "Margins are more reliable than LPS: safe examples, with large positive PM, are insensitive to perturbation, those "
        "around the class boundary are much vulnerable, and LPS of the largest value hides that they are (Wang et al. 2021, "
        "Sections 2 and 3.1, Figures 1b, 2 and 3).",
        "margins",
    ),
    "reweighting-and-attacks": (
        "AT, GAIRAT and MAIL-AT under PGD-100, CW and AutoAttack, over the epochs with weights (MAIL, Figure 1c)",
        "Weights made from LPS make a network more robust to PGD, but its accuracy drops under CW, more than with MAIL's, "
        "and under AutoAttack (Wang et al. 2021, Section 2, Figure 1c, and Table 2).",
        "reweighting",
    ),
    "fgsm-training": (
        "training with FGSM against training with PGD, over epochs (lecture notes, Wong et al. 2020)",
        "Training with FGSM does not protect against PGD (lecture notes on adversarial training); with large ε robustness "
        "to PGD is lost within an epoch, while FGSM still seems to fail (Wong et al. 2020, catastrophic overfitting).",
        "overfitting",
    ),
    "memorising": (
        "random labels, and the gap between training and test examples (lecture notes, Rice et al. 2020)",
        "Adversarial training learns rather than remembers (lecture notes on adversarial training); yet its robust accuracy "
        "generalises worse than its clean accuracy (Schmidt et al. 2018; Rice et al. 2020).",
        "overfitting",
    ),
    "epsilon": (
        "training with multiples of ε, attacked with ε (lecture notes)",
        "Overdoing the perturbation in training does not work: it moves inputs to the other class (lecture notes on "
        "adversarial training).",
        "amounts",
    ),
    "capacity": (
        "training networks of several widths (Madry et al. 2018; blog on MART)",
        "Adversarial training needs larger networks: small ones may have high clean accuracy, but do not become robust "
        "(blog on MART; Madry et al. 2018, Section 4).",
        "amounts",
    ),
    "examples": (
        "training on parts of the training examples (Schmidt et al. 2018; blog on MART)",
        "Adversarial training may need many more examples than standard training (blog on MART; Schmidt et al. 2018).",
        "amounts",
    ),
    "unlabelled": (
        "a quarter of the labels, and pseudo-labels for the rest (MART, Carmon et al. 2019)",
        "Unlabelled examples, labelled by a standard network, make adversarial training more robust (Carmon et al. 2019), "
        "and MART more than that (Wang et al. 2020).",
        "amounts",
    ),
    "difficulty": (
        "robust accuracy by the margin of the examples, and with noisy labels (note on MART)",
        "MART focuses on hard examples, those with low confidence without an attack, and is good where difficulty varies "
        "(note on MART).",
        "difficulty",
    ),
}


def __dir__() -> list[str]:
    return __all__


def find_study(name: str) -> "Study":
    """Return a study.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in STUDIES:
        raise unknown_name("study", name, STUDIES)
    from hauberk.experiments.studies.study import Study

    _, claim, room = STUDIES[name]
    code, function = vars(import_module(f"{__name__}.{room}")), name.replace("-", "_")
    return Study(name, claim, code[function], code[f"draw_{function}"])
