# SPDX-License-Identifier: Apache-2.0
"""What can be seen of an engine at work: counts, records of its passes, traces, pictures, metrics."""
