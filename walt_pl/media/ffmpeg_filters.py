"""Filters of FFmpeg for the commands that the program tells people to type. PyAV's FFmpeg has them, too: tests run them there."""

OVER_WHITE = (
    "-vf 'split[a][b];[a]drawbox=c=white:t=fill:replace=1[w];[w][b]overlay=format=rgb,crop=floor(iw/2)*2:floor(ih/2)*2,format=yuv420p'"
)
"""Option that puts a picture with alpha over white. It cuts an odd last row or column, which H.264 in 4:2:0 cannot have."""
