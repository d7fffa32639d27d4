"""Tables: rows of a CSV or Parquet file with a description of what an adversary may change."""

from hauberk.tables.defaults import usual_network, usual_threat
from hauberk.tables.reach import Reach, Rows, reach_of
from hauberk.tables.risk import Risk, measure_risk
from hauberk.tables.schema import Description, Feature, draft, read_description
from hauberk.tables.table import Table, make_table, read_frame, read_table

__all__ = [
    "Description",
    "Feature",
    "Reach",
    "Risk",
    "Rows",
    "Table",
    "draft",
    "make_table",
    "measure_risk",
    "reach_of",
    "read_description",
    "read_frame",
    "read_table",
    "usual_network",
    "usual_threat",
]
