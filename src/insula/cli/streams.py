"""From this process's terminal, pipes and signals to the streams of a request."""

from __future__ import annotations

import os
