"""What labels a scan: one network, an ensemble, a cascade of many, or an exported bundle, behind the same few names.

`opened` looks at the folders that the user gave and returns a `Network`, a `CascadeNetwork` or a `BundleNetwork`. All
have `channels`, `labels()`, `subjects_of()`, `warnings`, `is_reduced` and `description()`; `predicting` needs to know
no more.
"""

from collections.abc import Sequence
from pathlib import Path

from tfmuscle import inference
from tfmuscle.errors import DataError
from tfmuscle.export.bundle import is_bundle
from tfmuscle.serving import Patience
from tfmuscle.workflows.bundles import BundleNetwork
from tfmuscle.workflows.cascade_networks import CascadeNetwork
from tfmuscle.workflows.ensembles import Network
from tfmuscle.workflows.predict_options import PredictOptions
from tfmuscle.workflows.served import served

__all__ = ["AnyNetwork", "CascadeNetwork", "Network", "PredictOptions", "opened"]

AnyNetwork = Network | CascadeNetwork | BundleNetwork
"""Whatever `opened` returns."""


def opened(paths: Sequence[str | Path], options: PredictOptions) -> AnyNetwork:
    """Opens run folders, folders of cross-validation, a cascade, or a bundle.

    Raises:
        DataError: they cannot be used, do not go together, or do not know an option.
    """
    bundles = [path for path in paths if is_bundle(path)]
    others = [path for path in paths if is_bundle(path) or inference.is_cascade(path)]
    if options.uncertainty and (others or options.server is not None):
        what = f"{others[0]}: is a bundle or a cascade" if others else f"{paths[0]}: is on a server"
        raise DataError(f"{what}, and uncertainty is of run folders; give those, or leave out --uncertainty")
    if bundles and (len(paths) > 1 or options.roi or options.cascade or options.prior is not None):
        raise DataError(
            f"{bundles[0]}: is a bundle, which makes no ensemble with others; give it alone, without --roi, --cascade"
            " and --prior"
        )
    if options.server is not None:
        return _served(paths, options)
    if bundles:
        engine = "auto" if options.engine == "keras" else options.engine  # a bundle holds no Keras network
        return BundleNetwork.opened(bundles[0], engine=engine, postprocess=options.postprocess)
    if options.engine not in inference.ENGINES:
        raise DataError(
            f"{paths[0]}: is no bundle; engine {options.engine} is for bundles, which 'tfmuscle export' makes"
        )
    cascades = [path for path in paths if inference.is_cascade(path)]
    if cascades and len(paths) > 1:
        raise DataError(f"{cascades[0]}: is a cascade, which makes no ensemble with other runs; give it alone")
    if cascades:
        return CascadeNetwork.opened(Path(cascades[0]), options)
    if options.roi or options.cascade:
        raise DataError(
            f"{paths[0]}: is no cascade, and finds all of its structures at once; leave out --roi and --cascade"
        )
    return Network.opened(paths, options)


def _served(paths: Sequence[str | Path], options: PredictOptions) -> BundleNetwork:
    if not is_bundle(paths[0]) or options.engine != "keras":
        raise DataError(
            f"{paths[0]}: with --server give the bundle that is served, or a copy of its JSON files, and no --engine"
        )
    patience = Patience(options.deadline, options.patience)
    return served(paths[0], str(options.server), patience, send=options.send, postprocess=options.postprocess)
