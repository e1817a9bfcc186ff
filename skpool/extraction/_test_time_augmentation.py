# SPDX-License-Identifier: BSD-3-Clause
"""TestTimeAugmentation: several views of every image through one extractor, in one pass.

It stands where an extractor of vectors stands, and gives each image one row of views, so that
cross-validation splits images and never views. `ViewAggregator` or `ViewAveragingClassifier`
(room `pooling`) come after it.
"""

from collections.abc import Sequence
from contextlib import contextmanager
from numbers import Integral, Real

import numpy as np
from sklearn.base import BaseEstimator, MetaEstimatorMixin, TransformerMixin, _fit_context, clone
from sklearn.utils import Tags, get_tags
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.exceptions import UnreadableInputError
from skpool.extraction._base import RawSamplesMixin
from skpool.inputs import VIEWS, ImageSequence, image_views, view_sequence
from skpool.utils import ArrayLike

__all__ = ["TestTimeAugmentation"]


@contextmanager
def _named_by_image(n_views: int):
    """Let an error of unreadable views name the images, each once."""
    try:
        yield
    except UnreadableInputError as error:
        raise UnreadableInputError(_images_of(error.failures, n_views)) from None


def _images_of(failures: Sequence[tuple], n_views: int) -> list[tuple[int, str, str]]:
    """The images behind rows of views, with the reason of the first view."""
    images: dict[int, tuple] = {}
    for row, name, reason in sorted(failures):
        images.setdefault(row // n_views, (row // n_views, name, reason))
    return list(images.values())


class TestTimeAugmentation(
    RawSamplesMixin,
    MetaEstimatorMixin,
    TransformerMixin,
    BaseEstimator,
    auto_wrap_output_keys=None,
):
    """Feature vectors of several views of every image.

    The views of all images are run as one sequence of images, and come back as one row per image,
    (n_samples, n_views, n_features) [1]_.

    Parameters
    ----------
    extractor : estimator
        Turns images into vectors: a `FeatureExtractor` with ``tokens="cls"``, or a `Pipeline` of a
        `FeatureExtractor` and a pooling. It is cloned.
    views : {"flip", "five_crop", "ten_crop", "sixteen_view", "multi_scale"} or list of callables, \
default="flip"
        - "flip": the image and its mirror image.
        - "five_crop": the four corners and the centre.
        - "ten_crop": these five, then their mirror images.
        - "sixteen_view": the whole image, the five crops, two rotations by `angle` and -`angle`;
          then the mirror images of these eight.
        - "multi_scale": one zoom for each of `scales`.
        - A list: each item is a callable from a PIL image (RGB) to a PIL image, or a pair
          (name, callable).
    crop_area : float, default=4/9
        Share of the image's area in a crop, which has the aspect of the image.
    angle : float, default=15.0
        Degrees of the rotations, less than 90.
    scales : sequence of float, default=(0.7071, 1.0, 1.4142)
        Zooms of "multi_scale".
    random_state : int, default=0
        Seed for callables that have a parameter ``rng``: each is given a numpy generator that
        starts anew for every image, so that a view is a function of its image.

    Attributes
    ----------
    extractor_ : estimator
        The fitted clone of `extractor`.
    n_views_ : int
        Number of views.
    failed_ : list of (int, str, str)
        Position, name and reason of the images of the last `transform` that could not be read.

    See Also
    --------
    skpool.pooling.ViewAggregator : Makes one vector of the views.
    skpool.pooling.ViewAveragingClassifier : Averages the decisions about the views.
    FeatureExtractor : Tokens of a frozen network.

    Notes
    -----
    Views are taken of the whole decoded image, before the backbone's own resize and crop, which
    then apply to every view as they do to an image. A crop or a zoom is therefore seen magnified,
    and where the backbone crops the centre out (``crop_pct`` below 1) it does so within each view.

    - Margins of centred crops are equal on both sides, so that the mirror image of a crop is the
      crop of the mirror image.
    - A rotation keeps the largest centred part with the aspect of the image that no corner cuts
      (two thirds of the area of a square, at 15 degrees): no pixel is made up.
    - A zoom by s > 1 keeps the centre, 1/s of each side. A zoom by s < 1 shows the whole image at
      s of the size, continued by its mirror image on all sides. The network's input keeps its
      size, so that networks of fixed input size take all scales. To run a network that takes
      several input sizes at several resolutions instead, join extractors with different
      `image_size` in a `FeatureUnion`.

    Cost: n_views forward passes per image, in full batches; neighbouring views share the decoding.
    Stores and caches keep the features of every view under the key of the image and the definition
    of the view; the view that is the image itself shares them with the plain extractor. A callable
    is known by the pixels that it gives, for which it runs once more even where all features are
    stored. A pair (name, callable) is known by its name, without running it: change the name
    when the code changes.

    With `on_error="nan"` in the extractor, the views of an unreadable image are NaN.

    References
    ----------
    .. [1] A. S. Razavian, H. Azizpour, J. Sullivan, S. Carlsson, CNN Features off-the-shelf: an
       Astounding Baseline for Recognition, 2014. <https://arxiv.org/abs/1403.6382>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.extraction import FeatureExtractor, TestTimeAugmentation
    >>> images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    >>> extractor = FeatureExtractor("glyph", tokens="cls")
    >>> TestTimeAugmentation(extractor, views="five_crop").fit_transform(images).shape
    (3, 5, 128)
    """

    # Not a test, whatever its name begins with.
    __test__ = False

    _parameter_constraints: dict = {
        "extractor": [HasMethods(["fit", "transform"])],
        "views": [StrOptions(set(VIEWS)), list, tuple],
        "crop_area": [Interval(Real, 0, 1, closed="right")],
        "angle": [Interval(Real, -90, 90, closed="neither")],
        "scales": ["array-like"],
        "random_state": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        extractor: BaseEstimator,
        *,
        views: str | Sequence = "flip",
        crop_area: float = 4 / 9,
        angle: float = 15.0,
        scales: Sequence[float] = (0.7071, 1.0, 1.4142),
        random_state: int = 0,
    ):
        self.extractor = extractor
        self.views = views
        self.crop_area = crop_area
        self.angle = angle
        self.scales = scales
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None):
        """Fit the extractor on the views, which for a frozen network only checks.

        Parameters
        ----------
        X : list or Series of paths, list of PIL images, uint8 array (n, height, width, channels), \
or ImageSequence
            The images.
        y : ignored
            Present for the API.

        Returns
        -------
        self : estimator
        """
        views = self._views()
        sequence = view_sequence(ImageSequence(X), views)
        with _named_by_image(len(views)):
            self.extractor_ = clone(self.extractor).fit(sequence)
        self.n_views_ = len(views)
        return self

    def transform(self, X) -> ArrayLike:
        """Return the vectors of all views.

        Parameters
        ----------
        X : list or Series of paths, list of PIL images, uint8 array (n, height, width, channels), \
or ImageSequence
            The images.

        Returns
        -------
        XV : ndarray of shape (n_samples, n_views, n_features)
            A tensor where the extractor gives tensors.

        Raises
        ------
        UnreadableInputError
            Some images cannot be read, and the extractor has ``on_error="raise"``. All others are
            computed and kept before.
        """
        self._validate_params()
        images, views = ImageSequence(X), self._views()
        extractor = self._ready()
        self._failures = []
        with _named_by_image(len(views)):
            vectors = extractor.transform(view_sequence(images, views))
        self._failures = _images_of(_failures_of(extractor), len(views))
        vectors = _checked_vectors(vectors)
        return vectors.reshape(len(images), len(views), vectors.shape[1])

    def _views(self) -> tuple:
        return image_views(
            self.views,
            crop_area=self.crop_area,
            angle=self.angle,
            scales=self.scales,
            random_state=self.random_state,
        )

    def _ready(self) -> BaseEstimator:
        """The fitted extractor, or a new one where there is nothing to learn."""
        if hasattr(self, "extractor_"):
            return self.extractor_
        extractor = clone(self.extractor)
        check_is_fitted(extractor)
        return extractor

    @property
    def failed_(self) -> list[tuple[int, str, str]]:
        """Images of the last `transform` that could not be read."""
        if not hasattr(self, "_failures"):
            raise AttributeError("failed_ is known after `transform`.")
        return list(self._failures)

    def get_feature_names_out(self, input_features=None) -> np.ndarray:
        """Names of the features of a view.

        Parameters
        ----------
        input_features : ignored
            Present for the API.

        Returns
        -------
        names : ndarray of str
        """
        return self._ready().get_feature_names_out()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = get_tags(self.extractor).requires_fit
        return tags


def _failures_of(extractor: object) -> Sequence[tuple]:
    """What the first step, which read the images, could not read."""
    while hasattr(extractor, "steps"):
        extractor = extractor.steps[0][1]
    return getattr(extractor, "failed_", ())


def _checked_vectors(vectors: object) -> ArrayLike:
    if hasattr(vectors, "to_numpy"):
        vectors = vectors.to_numpy()
    if getattr(vectors, "ndim", None) != 2:
        raise ValueError(
            f"extractor gives {type(vectors).__name__} of shape {getattr(vectors, 'shape', None)} "
            "and must give vectors (n_samples, n_features); set tokens='cls', or put a pooling "
            "behind it in a Pipeline."
        )
    return vectors
