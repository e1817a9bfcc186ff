# SPDX-License-Identifier: BSD-3-Clause
"""The Dask client of a call. Dask is optional, and imported only where it is used."""

from typing import Any

from skpool.utils import import_optional

__all__ = ["dask_distributed", "find_client"]


def dask_distributed():
    """Import `dask.distributed`, or say which extra brings it."""
    return import_optional("dask.distributed", extra="dask", purpose="skpool.distributed")


def find_client(client: object | None) -> Any:
    """Return the client that was given, or the one that this process has.

    Parameters
    ----------
    client : Client or None

    Returns
    -------
    client : Client
    """
    distributed = dask_distributed()
    if client is None:
        try:
            return distributed.get_client()
        except ValueError:
            raise ValueError(
                "client=None takes the Dask client of this process, and there is none; make one, "
                "Client(LocalCluster(n_workers=2)) say, from dask.distributed."
            ) from None
    if not isinstance(client, distributed.Client):
        raise TypeError(
            f"client must be a dask.distributed.Client, got {type(client).__name__}; make one of "
            "your cluster: Client(cluster)."
        )
    if client.asynchronous:
        raise ValueError("client=Client(asynchronous=True) is not served; make a plain Client.")
    return client
