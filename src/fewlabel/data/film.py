"""Frames of a video file by their number.

PyAV (FFmpeg) decodes them; it is an extra and is imported only when a video file is opened.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewlabel.core.errors import DataError
from fewlabel.data.decoders import FileError, check_size, translated

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

ENDINGS = (".mp4", ".avi", ".mkv", ".mov")
"""Endings of video files, in lower case."""

# Kinds of container by FFmpeg's names. Others stay out: a playlist under a harmless name would open further files and
# addresses. The protocol is limited for the same reason.
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": "avi,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2"}

_RECENT = 8  # decoded frames that are kept; as many as there are threads in a check


class Film:
    """One video file; its first video stream counts.

    Opening reads the file's packets once, without decoding, to learn the time of every frame. A frame is then reached
    by going to the key frame before it and decoding from there; frames asked for in rising order are decoded once each.
    The last few decoded frames are kept, and no more than FFmpeg's reference frames besides. Files that do not tell the
    times of their frames (B-frames in AVI) are decoded from the start instead. Not for use from several threads at a
    time.

    Args:
        path: The file.
        max_pixels: Largest allowed height x width of a frame.

    Attributes:
        path: As given.
        count: Number of frames that the file announces.

    Raises:
        FileError: The file cannot be opened or holds no video.
        DataError: PyAV is not installed.
    """

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.path, self._max_pixels = path, max_pixels
        self._container: InputContainer | None = None
        self._decoded: Iterator[VideoFrame] = iter(())
        self._recent: dict[int, VideoFrame] = {}
        self._next = 0  # number of the frame that comes next from `_decoded`
        with self._guarded():
            container = self._open()
            stream = container.streams.video[0]
            packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.size]
            reorders = stream.codec_context.has_b_frames
        self.close()
        self.count = len(packets)
        if not packets:
            raise FileError(path, f"{path} holds no frame: record it again or remove it.")
        times = [time for time, _ in packets]
        known = [time for time in times if time is not None]
        rising = all(first < second for first, second in zip(known, known[1:], strict=False))
        # A stream that reorders frames, in a container whose times rise all the same, has made these times up.
        sure = len(set(known)) == len(times) and not (rising and reorders and len(times) > 1)
        self._times = sorted(known) if sure else None
        self._keys = sorted(time for time, key in packets if key and time is not None)

    def frame(self, number: int) -> np.ndarray:
        """Decode one frame.

        Args:
            number: From 0 to ``count`` - 1, in the order in which frames are shown.

        Returns:
            (H, W) of grey streams, (H, W, 3) RGB of all others; uint8, or uint16 for streams of more than 8 bits, whose
            values FFmpeg scales to 0..65535. A rotation noted in the file is not applied.

        Raises:
            FileError: There is no such frame, or it is damaged.
        """
        if not 0 <= number < self.count:
            raise FileError(self.path, f"{self.path} has {self.count} frames, so there is no frame {number}.")
        with self._guarded():
            frame = self._recent.get(number)
            if frame is None:
                frame = self._by_count(number) if self._times is None else self._by_time(number, self._times)
            return self._values(frame)

    def close(self) -> None:
        """Close the file; the next frame opens it again."""
        if self._container is not None:
            self._container.close()
        self._container, self._decoded, self._next = None, iter(()), 0
        self._recent.clear()

    def _by_time(self, number: int, times: list[int]) -> VideoFrame:
        """The frame by its time: from the last one on where no key frame lies between, else from the key frame."""
        wanted = times[number]
        key = max((time for time in self._keys if time <= wanted), default=times[0])
        near = self._container is not None and self._next <= number and key <= times[self._next]
        if not near:
            self._start(key)
        frame = self._first_from(wanted, times)
        if not near and (frame is None or frame.pts != wanted):  # the container's index led too far
            self.close()
            self._start()
            frame = self._first_from(wanted, times)
        if frame is None or frame.pts != wanted:
            self.close()
            raise ValueError(f"frame {number} of {self.count} cannot be decoded")
        self._next = number + 1
        return frame

    def _first_from(self, wanted: int, times: list[int]) -> VideoFrame | None:
        """The next frame that is not before a time."""
        for frame in self._decoded:
            if frame.pts is not None:
                number = bisect_left(times, frame.pts)
                if number < len(times) and times[number] == frame.pts:
                    self._keep(number, frame)
                if frame.pts >= wanted:
                    return frame
        return None

    def _start(self, time: int | None = None) -> None:
        """Decode from the beginning, or from the key frame shown at a time.

        That time, not the one of a later frame: some containers go by the order of decoding, in which the key frame
        after it may come earlier.
        """
        container = self._container or self._open()
        stream = container.streams.video[0]
        if time is not None:
            container.seek(time, stream=stream)
        self._decoded, self._next = container.decode(stream), 0

    def _by_count(self, number: int) -> VideoFrame:
        """The frame by counting from the start, or from where the last one was."""
        if self._container is None or number < self._next:
            self.close()
            self._start()
        for frame in self._decoded:
            self._keep(self._next, frame)
            self._next += 1
            if self._next == number + 1:
                return frame
        raise ValueError(f"only {self._next} of its {self.count} frames can be decoded")

    def _keep(self, number: int, frame: VideoFrame) -> None:
        """Remember the last few frames: threads that share the work ask for neighbours in any order."""
        self._recent[number] = frame
        if len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]

    def _values(self, frame: VideoFrame) -> np.ndarray:
        check_size(frame.height, frame.width, self.path, self._max_pixels)
        deep = max(component.bits for component in frame.format.components) > 8
        if frame.format.name.startswith("gray"):
            return frame.to_ndarray(format="gray16le" if deep else "gray")
        return frame.to_ndarray(format="rgb48le" if deep else "rgb24")

    def _open(self) -> InputContainer:
        import av

        self._container = av.open(str(self.path), options=_OPTIONS, metadata_errors="replace")
        if not self._container.streams.video:
            raise FileError(self.path, f"{self.path} holds no video stream: remove it.")
        context = self._container.streams.video[0].codec_context
        check_size(context.height, context.width, self.path, self._max_pixels)
        return self._container

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Say what went wrong, and close the file: a failure leaves FFmpeg in the middle of something."""
        try:
            from av import FFmpegError
        except ImportError:
            raise DataError(f"{self.path} is a video, which needs PyAV: pip install 'fewlabel[video]'.") from None
        try:
            with translated(self.path):
                if self.path.stat().st_size == 0:
                    raise FileError(self.path, f"{self.path} is empty (0 bytes): copy the file again or remove it.")
                try:
                    yield
                except FFmpegError as error:  # some of its classes are of no built-in kind
                    raise ValueError(error.strerror) from error
        except DataError:
            self.close()
            raise
