# SPDX-License-Identifier: BSD-3-Clause
"""skpool: the scikit-learn of frozen features.

A pretrained network is a fixed function; everything a user then wants to choose (layer, pooling,
whitening, classifier, classes that arrive later) is ordinary scikit-learn. Samples flow through
the rooms of the package in one direction::

    inputs -> backbones -> extraction -> stores -> pooling -> preprocessing -> classifiers

and everything from pooling on works on plain arrays too.
"""

from skpool._config import config_context, get_config, set_config

__version__ = "0.1.0"

__all__ = ["__version__", "config_context", "get_config", "set_config"]
