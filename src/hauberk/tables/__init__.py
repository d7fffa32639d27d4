"""Tables: rows of a CSV or Parquet file with a schema of what an adversary may change."""

from hauberk.tables.risk import Risk, measure_risk
from hauberk.tables.schema import ColumnSchema, EncodedColumn, Reach, TableDataset, TableSchema, reach_of, read_schema
from hauberk.tables.table import Table, infer_schema, make_table, read_frame, read_table

__all__ = [
    "ColumnSchema",
    "EncodedColumn",
    "Reach",
    "Risk",
    "Table",
    "TableDataset",
    "TableSchema",
    "infer_schema",
    "make_table",
    "measure_risk",
    "reach_of",
    "read_frame",
    "read_schema",
    "read_table",
]
