"""A small HSTU on synthetic users who act in two domains, books and films; the shortest whole run.

    make demo
    python -m experiments.train --config=experiments/configs/demo.py --workdir=runs/demo

Data: 2,000 users, 960 items, 40 events per user on average. A user's latest genre of books usually determines the next
genre of films (`transfer`), so a model that reads both domains can do much better than popularity.

Time: 90 s of processor time, compilation included. Test events, best epoch on validation, seed 42: HR@10 .4310,
NDCG@10 .3280 (popularity .0340, .0167).
"""

from jaxrec.cli.demo import demo_config as get_config

__all__ = ["get_config"]
