/* Operands and results as XLA hands them over, taken one after the other and checked. */
#pragma once
#include <string.h>

#include "onednn_norms.h"
#include "xla/ffi/api/c_api.h"

static int is_typed(const XLA_FFI_Buffer *buffer, XLA_FFI_DataType type, int64_t rank) {
  return buffer->dtype == type && buffer->rank == rank;
}

static int is_array(const XLA_FFI_Buffer *buffer, int64_t rank) {
  return is_typed(buffer, XLA_FFI_DataType_F32, rank);
}

static const XLA_FFI_Buffer *const *operands_of(const XLA_FFI_CallFrame *frame) {
  return (const XLA_FFI_Buffer *const *)frame->args.args;
}

/* Operands or results one after the other; `wrong` once one of them is not what it should be. */
typedef struct {
  const XLA_FFI_Buffer *const *next;
  int64_t left;
  int wrong;
} Buffers;

static void *take_typed(Buffers *buffers, XLA_FFI_DataType type, int64_t rank, const int64_t *dims) {
  if (buffers->wrong || !buffers->left) return buffers->wrong = 1, NULL;
  const XLA_FFI_Buffer *const buffer = *buffers->next;
  ++buffers->next, --buffers->left;
  buffers->wrong = !is_typed(buffer, type, rank) || memcmp(buffer->dims, dims, rank * sizeof *dims);
  return buffer->data;
}

static void *take(Buffers *buffers, int64_t rank, const int64_t *dims) {
  return take_typed(buffers, XLA_FFI_DataType_F32, rank, dims);
}

static Norm take_norm(Buffers *operands, int64_t channels) {
  const int64_t dims[] = {2, channels};
  return (Norm){.statistics = take(operands, 2, dims), .scale = take(operands, 1, dims + 1)};
}

static Norm take_whole_norm(Buffers *operands, int64_t channels) {
  Norm norm = take_norm(operands, channels);
  norm.bias = take(operands, 1, &channels);
  return norm;
}
