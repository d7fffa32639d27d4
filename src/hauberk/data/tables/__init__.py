"""Rows of tables: what their columns are, how they become inputs, what can change in them."""

from hauberk.data.tables.draft import infer_schema
from hauberk.data.tables.reach import Reach, reach_of
from hauberk.data.tables.rows import TableDataset
from hauberk.data.tables.schema import ColumnSchema, EncodedColumn, TableSchema, read_schema
from hauberk.data.tables.table import Table, make_table, read_frame, read_table

__all__ = [
    "ColumnSchema",
    "EncodedColumn",
    "Reach",
    "Table",
    "TableDataset",
    "TableSchema",
    "infer_schema",
    "make_table",
    "reach_of",
    "read_frame",
    "read_schema",
    "read_table",
]
