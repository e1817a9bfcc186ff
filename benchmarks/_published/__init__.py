# SPDX-License-Identifier: BSD-3-Clause
"""One module per published code: how it is called on frozen features, and what stands beside it."""
