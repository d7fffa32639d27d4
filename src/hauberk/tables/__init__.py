"""Tables: rows of a CSV or Parquet file with a description of what an adversary may change."""

from hauberk.tables.defaults import default_model, default_threat
from hauberk.tables.reach import Reach, Rows, reach_of
from hauberk.tables.risk import Risk, measure_risk
from hauberk.tables.schema import Description, Feature, draft, read_schema
from hauberk.tables.table import Table, make_table, read_frame, read_table

__all__ = [
    "Description",
    "Feature",
    "Reach",
    "Risk",
    "Rows",
    "Table",
    "default_model",
    "default_threat",
    "draft",
    "make_table",
    "measure_risk",
    "reach_of",
    "read_frame",
    "read_schema",
    "read_table",
]
