"""Studies: experiments of the papers on any data, each with its claim, finding, table and picture."""

from hauberk.studies.catalogue import STUDIES, Study, find_study
from hauberk.studies.finding import Finding
from hauberk.studies.setting import Setting

__all__ = ["STUDIES", "Finding", "Setting", "Study", "find_study"]
