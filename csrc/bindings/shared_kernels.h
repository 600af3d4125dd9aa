// SPDX-License-Identifier: Apache-2.0
// The kernels that a binding of their own and dit_block.cpp both call. The bindings are compiled as one file
// (CMakeLists.txt), in which a kernel is declared once.
#pragma once

#include "ardiff/frame_attention.h"
#include "ardiff/linear.h"
#include "ardiff/modulate.h"
#include "ardiff/norm_rope_write.h"
#include "cpu/dispatch.h"

ARDIFF_DISPATCH(void, frame_attention, const ardiff::FrameAttentionParams& p)
ARDIFF_DISPATCH(void, linear, const ardiff::LinearParams& p)
ARDIFF_DISPATCH(void, modulate, const ardiff::ModulateParams& p)
ARDIFF_DISPATCH(void, norm_rope_write, const ardiff::NormRopeWriteParams& p)
