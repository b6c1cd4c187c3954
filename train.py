"""Train a network within a budget, or many of them with -m: `python train.py --help`."""

import hydra
from omegaconf import DictConfig

from bantam import cluster, config, errors, launch
from bantam.search import sweeper

config.register()
sweeper.register()
cluster.register()


@hydra.main(config_path="conf", config_name="config", execution_whitelist=config.WHITELIST)
def main(cfg: DictConfig) -> float:
    """Train what `cfg` says in the folder that Hydra made; returns the objective in percent."""
    return launch.job(cfg, sweeper.reporter)


if __name__ == "__main__":
    errors.begin()
    main()
