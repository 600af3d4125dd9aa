# SPDX-License-Identifier: Apache-2.0
"""Several engines behind one server, in processes that Ray starts, watches and replaces."""
