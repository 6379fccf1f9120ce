"""PyTorch on `busray export RUN FOLDER --to imagefolder`: python read_with_pytorch.py FOLDER"""

import sys

from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Grayscale, ToTensor

images = ImageFolder(f"{sys.argv[1]}/train", Compose([Grayscale(), ToTensor()]))
for pixels, labels in DataLoader(images, batch_size=8, shuffle=True):
    print(tuple(pixels.shape), [images.classes[label] for label in labels])
