"""A few real rows of every raw format, and functions that write and read them in tests."""

import gzip

from jaxrec.data.sources import source_reader
from jaxrec.data.sources.crc32c import masked_crc

ML1M_RATINGS = "1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n"
ML1M_MOVIES = """661::James and the Giant Peach (1996)::Animation|Children's|Musical
1193::One Flew Over the Cuckoo's Nest (1975)::Drama
9::Sudden Death (1995)::Drama
"""


def write(folder, files):
  """Writes files, given as name -> text or bytes, gzipped if the name ends in .gz; returns the folder."""
  for name, text in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
  return folder


def read(source, raw, **options):
  """The interaction log of a source."""
  return source_reader(source)(raw, **options)


def rows(log, *names):
  """The given columns of the events, as a list of tuples."""
  return log.events.select(names).rows()


REVIEW_2014 = {
  "reviewerID": "A1",
  "asin": "B9",
  "helpful": [2, 3],
  "reviewText": "a\nb",
  "overall": 5.0,
  "unixReviewTime": 1252800000,
}
REVIEW_2018 = {
  "overall": 4.0,
  "verified": True,
  "reviewerID": "A2",
  "asin": "B8",
  "unixReviewTime": 1514851200,
  "style": {"Size:": "1"},
}
REVIEW_2023 = {
  "rating": 5.0,
  "title": "t",
  "images": [],
  "asin": "B7v",
  "parent_asin": "B7",
  "user_id": "AE",
  "timestamp": 1588615855070,
}


KUAIRAND_HEAD = (
  "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,play_time_ms,"
  "duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)


def packed(integers):
  """Integers as packed varints of a protocol buffer."""
  out = bytearray()
  for value in integers:
    value &= (1 << 64) - 1
    while value >= 0x80:
      out.append(value & 0x7F | 0x80)
      value >>= 7
    out.append(value)
  return bytes(out)


def field(number, data):
  """A length-delimited field of a protocol buffer."""
  return bytes([number << 3 | 2]) + packed([len(data)]) + data


def record(**lists):
  """A TFRecord of a `tf.train.Example` with the given int64 lists."""
  entries = [
    field(1, field(1, key.encode()) + field(2, field(3, field(1, packed(values))))) for key, values in lists.items()
  ]
  example = field(1, b"".join(entries))
  size = len(example).to_bytes(8, "little")
  crcs = [int(crc).to_bytes(4, "little") for crc in masked_crc([size, example])]
  return size + crcs[0] + example + crcs[1]


def shards(folder, **changed):
  """KuaiRand's three folders of shards with one record each; `changed` replaces the record of a folder."""
  records = {
    name: record(sequence_data=[5, -1, 300, 7], sequence_event_type=[9, 9, 4, 9])
    for name in ("training", "evaluation", "testing")
  }
  return write(folder, {f"{name}/partition_0.tfrecord.gz": data for name, data in (records | changed).items()})


TAOBAO = """1,2268318,2520377,pv,1511544070
1,2333346,2520771,buy,1511561733
2,2268318,2520377,cart,1511561734
2,5,7,fav,-2134949234
"""

TMALL_HEAD = "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type\n"


def abxi(folder, text="0 1|1381536000 2|1381536000\n1 2|1357948800 1|1385424000\n", ids='{"B1": [1, 0], "B2": [2, 1]}'):
  """ABXI's two files."""
  return write(folder, {"afk_50_preprocessed.txt": text, "map_item_50.txt": ids})
