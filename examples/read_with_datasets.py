"""Hugging Face `datasets` on a run's own folder, or an export: python read_with_datasets.py RUN"""

import sys

from datasets import load_dataset

corpus = load_dataset(sys.argv[1], split="train")
names = corpus.features["class"].names
for row in corpus.shuffle(seed=0).select(range(8)):
    print(row["image"].size, names[row["class"]], row["caption"])
