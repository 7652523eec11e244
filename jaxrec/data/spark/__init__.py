"""The preparation of part files as a program on Spark, for logs that one machine cannot hold.

The result is, byte for byte, the one of `jaxrec.data.preparation.prepare` with the same shards. Whatever looks at
values is the code of one machine, which the workers run on pieces: reading and checks (`event_pieces`), order, split
and files of a shard (`shard_writer`). Spark does what needs events of several workers: it joins, counts and exchanges
them (`event_filters`, `prepare_on_spark`).
"""
