"""Studies: experiments of the papers on any data, each with its claim, finding, table and picture."""

from hauberk.experiments.studies.catalogue import STUDIES, Study, find_study
from hauberk.experiments.studies.finding import Finding
from hauberk.experiments.studies.setting import Setting

__all__ = ["STUDIES", "Finding", "Setting", "Study", "find_study"]
