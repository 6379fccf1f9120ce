"""Makes busray's embedded base from nothing: corpus, autoencoder, latents, denoiser, checkpoint.
Restartable.

python -m tools.tiny_base.make WORK [--out busray/model/tiny] [--stage all] [--seed 1]
"""

import argparse
from functools import partial
from pathlib import Path

import torch

from busray.model.base import TINY
from tools.tiny_base import autoencoder, denoiser
from tools.tiny_base.training import write_log

STAGES = ("corpus", "vae", "scans", "latents", "decoder", "unet", "texture", "save")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for everything in between (1 GB)")
    parser.add_argument("--out", type=Path, default=TINY)
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--autoencoder", type=Path, help="take it from this saved base instead of training one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--phantoms", type=int, default=8000)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--scans", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    args.work.mkdir(parents=True, exist_ok=True)

    log = partial(write_log, args.work)
    stages = STAGES if args.stage == "all" else (args.stage,)
    if args.autoencoder:
        autoencoder.take_autoencoder(args.autoencoder, args.work)
        stages = tuple(stage for stage in stages if stage not in ("corpus", "vae", "decoder"))
    if "corpus" in stages:
        denoiser.make_corpus(args.work, args.seed, args.phantoms, args.pictures, args.threads)
    if "vae" in stages:
        autoencoder.train_vae(args.work, args.seed, log)
    if "scans" in stages:
        denoiser.make_scans(args.work, args.seed, args.scans, args.threads)
    if "latents" in stages:
        autoencoder.encode_scans(args.work, log)
    if "decoder" in stages:
        autoencoder.train_decoder(args.work, args.seed, log)
    if "unet" in stages:
        denoiser.train_unet(args.work, args.seed, log, args.threads)
    if "texture" in stages:
        denoiser.train_texture(args.work, args.seed, log, args.threads)
    if "save" in stages:
        denoiser.save_base(args.work, args.out)


if __name__ == "__main__":
    main()
