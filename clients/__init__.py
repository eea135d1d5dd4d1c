"""The Flower ClientApp: data and their partitions, models, local training."""
