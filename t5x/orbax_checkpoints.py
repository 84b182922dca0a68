"""Reads the checkpoints that Orbax wrote: T5X's since 2023, and our own.

    checkpoint_<step>/state/_METADATA      JSON: names and kinds
    checkpoint_<step>/state/manifest.ocdbt, d/, ocdbt.process_<i>/
                                           zarr arrays in tensorstore's OCDBT,
    checkpoint_<step>/state/target.<name>/ or in folders of their own

Orbax's own reader would restore the whole tree; here each array stays lazy.
What is detected: missing and cut files, and every damage to names, kinds,
shapes and dtypes. OCDBT keeps sums over its index, but neither it nor Orbax's
zstd keeps one over the values: a flipped bit there is found only with
`t5x.manifest`.
"""

from collections.abc import Mapping
import json
from typing import Any

from t5x import lazy_arrays
from t5x import zarr_arrays
import tensorstore as ts

CheckpointError = lazy_arrays.CheckpointError
LazyArray = lazy_arrays.LazyArray

METADATA = '_METADATA'
# Leaves that are no arrays but stand in the metadata.
_EMPTY = ('None', 'Dict', 'List', 'Tuple', 'NamedTuple')
_HEADERS = {False: '.zarray', True: 'zarr.json'}


def read_orbax(directory: str) -> dict[str, LazyArray]:
  """Opens what Orbax wrote for one tree.

  Args:
    directory: the folder of `_METADATA`, local or remote.

  Returns:
    From flat name (`target/...`, `state/step`) to array. Entries that are
    recorded as None are left out.

  Raises:
    CheckpointError: if it is not such a folder, or a damaged one.
  """
  store = lazy_arrays.open_store(directory)
  with zarr_arrays.naming(f'{directory}/{METADATA}'):
    content = json.loads(bytes(store.read(METADATA).result().value))
    names = _names(content['tree_metadata'])
    use_ocdbt = content.get('use_ocdbt', True)
    use_zarr3 = content.get('use_zarr3', False)
    if not (type(use_ocdbt) is type(use_zarr3) is bool):
      raise ValueError('it does not say how arrays are kept')
  if use_ocdbt:
    with zarr_arrays.naming(f'{directory}/manifest.ocdbt'):
      store = ts.KvStore.open(
          {'driver': 'ocdbt', 'base': store.spec().to_json()}).result()
  places = zarr_arrays.places(store, directory, _HEADERS[use_zarr3])
  keys = {name: name.replace('/', '.') for name in names}
  zarr_arrays.require_same_arrays(directory, keys.values(), places)
  make = zarr_arrays.lazy_zarr3 if use_zarr3 else zarr_arrays.lazy_zarr
  return {name: make(name, places[key], names[name])
          for name, key in keys.items()}


def _names(tree: Mapping[str, Any]) -> dict[str, list[int] | None]:
  """The flat names of all arrays, and in parts of what shape they were written.

  Older versions of Orbax do not say the latter.
  """
  names = {}
  for key, entry in tree.items():
    path = [part['key'] for part in entry['key_metadata']]
    if key != str(tuple(path)):
      raise ValueError(f'{key} and {path} are not the same name')
    value = entry['value_metadata']
    if value['value_type'] not in _EMPTY:
      names['/'.join(path)] = value.get('write_shape')
  return names
