/* Float32 convolutions and their gradients as XLA custom calls, computed by oneDNN; onednn.py builds and loads it.
 *
 * Handlers for XLA's foreign function interface (https://docs.jax.dev/en/latest/ffi.html), with the attribute `window`,
 * int64[9] for each convolution: strides down and across, padding top, bottom, left and right, groups, and of
 * convolution_evaluated whether it ends in a ReLU and whether the image is what is added. The first four have one result.
 *
 *   convolution_output            image [N,H,W,I], kernel [h,w,I/groups,O] -> output [N,H',W',O]
 *   convolution_input_gradient    output's gradient, kernel                -> image's gradient
 *   convolution_weight_gradient   image, output's gradient                 -> kernel's gradient
 *   convolution_evaluated         image, then of one convolution after the other a kernel, scale [O] and shift [O], then
 *                                 an addend [N,H',W',O] or none            -> output
 *                                 output = ReLU(convolution · scale + shift), the last one's + addend before the ReLU
 *   convolution_prepared          the same with kernels out of `kernels_prepared`, float32[size]; an attribute `kernels`
 *                                 has their shapes, int64[4] each
 *   kernels_prepared              kernels of one `convolution_evaluated` -> each as oneDNN wants it, float32[size]; an
 *                                 attribute `image`, int64[5], has the image's shape and whether there is an addend
 *   threads                       -> int32, how many there are to share the work
 *
 * Of training, with batch norms around it; a second attribute is `epsilon`, float32. The window's last two numbers are
 * what comes before the convolution, 0 nothing, 1 a norm and a ReLU, 2 the end of a block: a norm, an addition and a ReLU, 3
 * the same with a norm of what is added, too; and what is behind it: 0 no norm, 1 a norm, and of the gradient 2 one whose sums are not known yet, 3 the same with a
 * ReLU behind it.
 *
 *   convolution_trained           image, kernel, with a norm before it statistics [2,I] (means, variances), scale [I] and
 *                                 bias [I], of a block's end (2, 3) what is added [N,H,W,I], with its
 *                                 norm (3) the same three of that -> output, with a norm behind it
 *                                 the statistics of the output [2,O], of a block's end what that gives [N,H,W,I]
 *   convolution_trained_gradient  image (2, 3: what the block's end gave), kernel, gradient by what the last of output, norm
 *                                 and ReLU gives; with a norm before it the same three (2, 3: in place of them what
 *                                 the block's norm took in [N,H,W,I]); with one behind it output, statistics [2,O], scale [O] and 1:
 *                                 sums [2,O] of the gradient by what the norm gives and of it times the output, or 3: what
 *                                 the ReLU gave; then what is to be added to the image's gradient, or nothing
 *                                 -> kernel's gradient; if it is asked for, image's gradient, which with a norm before it
 *                                 is that by what the norm gives, followed by its sums [2,I]; with one behind it the
 *                                 gradients by its scale [O] and bias [O]; 3: the gradient by what it gives
 *
 * And of the stem's end, with no attribute but `epsilon`; H' = (H - 1) / 2 + 1, W' alike.
 *
 *   pooled                        what a norm takes [N,H,W,C], statistics [2,C], scale [C], bias [C] -> the largest of each
 *                                 window of what its ReLU gives [N,H',W',C], uint8 of that shape: which one that is
 *   pooled_gradient               what the norm takes, the gradient by the largest, the uint8 -> the gradient by what the norm
 *                                 gives, its sums [2,C]
 */
#define _GNU_SOURCE
#include <stdio.h>

#include "onednn_few.h"
#include "onednn_pooling.h"
#include "onednn_reading.h"
#include "onednn_rows.h"

static XLA_FFI_Error *failure(const XLA_FFI_CallFrame *frame, const char *message) {
  XLA_FFI_Error_Create_Args it = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL, message, XLA_FFI_Error_Code_INTERNAL};
  return frame->api->XLA_FFI_Error_Create(&it);
}

static const char *take_shapes(const XLA_FFI_CallFrame *frame, const int64_t *window, Shape *s) {
  const XLA_FFI_Buffer *const *operand = operands_of(frame);
  if (frame->args.size < 2 || !is_array(operand[0], 4) || !is_array(operand[1], 4))
    return "takes float32 arrays of four dimensions";
  const int64_t *const w = memcpy(s->window, window, sizeof s->window);
  memcpy(s->image, operand[0]->dims, sizeof s->image);
  memcpy(s->kernel, operand[1]->dims, sizeof s->kernel);
  if (w[0] < 1 || w[1] < 1 || w[GROUPS] < 1 || s->image[0] < 1) return "takes steps, groups and images of one or more";
  if (s->kernel[2] * w[GROUPS] != s->image[3]) return "takes a kernel for the image's channels";
  const int64_t output[] = {s->image[0], (s->image[1] + w[2] + w[3] - s->kernel[0]) / w[0] + 1,
                            (s->image[2] + w[4] + w[5] - s->kernel[1]) / w[1] + 1, s->kernel[3]};
  memcpy(s->output, output, sizeof output);
  s->window[BEFORE] = s->window[BEHIND] = 0; /* oneDNN compiles the same for all */
  return NULL;
}

static void take_forward(const int64_t *numbers, const Link *link, Buffers *results, Training *t) {
  const int64_t statistics[] = {2, t->shape.output[3]};
  t->forward = (Call){.links = 1, .link[0] = *link};
  t->result = take(results, 4, t->shape.output);
  t->found = numbers[BEHIND] ? take(results, 2, statistics) : NULL;
  t->closed = numbers[BEFORE] >= BLOCK ? take(results, 4, t->shape.image) : NULL;
}

static void take_backward(const int64_t *numbers, const Link *link, Buffers *operands, Buffers *results, Training *t) {
  const Shape *s = &t->shape;
  const int64_t in[] = {2, s->image[3]}, out[] = {2, s->output[3]}, behind = numbers[BEHIND];
  const int64_t of_norm = behind ? 2 + (behind > 2) : 0;
  t->source = numbers[BEFORE] >= BLOCK ? take(operands, 4, s->image) : NULL;
  if (behind) {
    t->output = take(operands, 4, s->output);
    t->behind = take_norm(operands, s->output[3]);
  }
  if (behind == 1) t->behind.sums = take(operands, 2, out);
  if (behind == 3) t->rectified = take(operands, 4, s->output);
  t->addend = operands->left ? take(operands, 4, s->image) : NULL;
  t->by_kernel = (Call){.links = 1, .link[0].plain = take(results, 4, s->kernel)};
  if (results->left > of_norm) {
    t->by_image = (Call){.links = 1, .link[0] = *link};
    t->result = take(results, 4, s->image);
    t->found = numbers[BEFORE] ? take(results, 2, in) : NULL;
  }
  t->by_scale = behind ? take(results, 1, out + 1) : NULL;
  t->by_bias = behind ? take(results, 1, out + 1) : NULL;
  t->by_norm = behind > 2 ? take(results, 4, s->output) : NULL;
}

/* NULL, or what is wrong. */
static const char *read_training(const XLA_FFI_CallFrame *frame, int back, Training *t) {
  if (frame->attrs.size != 2) return "takes two attributes";
  const XLA_FFI_Scalar *epsilon = frame->attrs.attrs[0];
  const XLA_FFI_Array *window = frame->attrs.attrs[1];
  if (frame->attrs.types[0] != XLA_FFI_AttrType_SCALAR || epsilon->dtype != XLA_FFI_DataType_F32 ||
      frame->attrs.types[1] != XLA_FFI_AttrType_ARRAY || window->dtype != XLA_FFI_DataType_S64 ||
      window->size != NUMBERS)
    return "takes an epsilon of float32 and a window of nine int64";
  const int64_t *const numbers = window->data;
  const char *wrong = take_shapes(frame, numbers, &t->shape);
  if (wrong) return wrong;
  const Shape *s = &t->shape;
  Buffers operands = {operands_of(frame), frame->args.size, 0};
  Buffers results = {(const XLA_FFI_Buffer *const *)frame->rets.rets, frame->rets.size, 0};
  t->epsilon = *(const float *)epsilon->value;
  t->image = take(&operands, 4, s->image);
  Link link = {.plain = take(&operands, 4, s->kernel)};
  t->gradient = back ? take(&operands, 4, s->output) : NULL;
  if (numbers[BEFORE] && !(back && numbers[BEFORE] >= BLOCK))
    t->before = take_whole_norm(&operands, s->image[3]);
  if (!back && numbers[BEFORE] >= BLOCK) t->addend = take(&operands, 4, s->image);
  if (!back && numbers[BEFORE] == PROJECTED) t->projected = take_whole_norm(&operands, s->image[3]);
  if (back)
    take_backward(numbers, &link, &operands, &results, t);
  else
    take_forward(numbers, &link, &results, t);
  if (operands.wrong || operands.left) return "takes other operands";
  return results.wrong || results.left ? "gives other results" : NULL;
}

static int convolve_in_training(const XLA_FFI_CallFrame *frame, int back, const char **wrong) {
  Training t;
  memset(&t, 0, sizeof t);
  *wrong = read_training(frame, back, &t);
  return *wrong ? SUCCESS : is_few(&t.shape) ? train_few(frame, &t) : train(frame, &t);
}

/* What is read of any but training's. Shapes are told apart byte by byte. */
typedef struct {
  Call call;
  Shape shapes[MOST_LINKS];
} Alone;

static int convolve_alone(const XLA_FFI_CallFrame *frame, int kind, const char **wrong) {
  Alone a;
  memset(&a, 0, sizeof a);
  *wrong = read(frame, kind, 0, a.shapes, &a.call);
  if (*wrong) return SUCCESS;
  if (kind == EVALUATED) return evaluate(frame, a.shapes, &a.call);
  return is_few(a.shapes) ? convolve_few(frame, a.shapes, &a.call) : convolve(frame, a.shapes, &a.call);
}

static int evaluate_prepared(const XLA_FFI_CallFrame *frame, int kind, const char **wrong) {
  Alone a;
  memset(&a, 0, sizeof a);
  *wrong = read(frame, kind, 1, a.shapes, &a.call);
  return *wrong ? SUCCESS : evaluate(frame, a.shapes, &a.call);
}

static int prepare_kernels(const XLA_FFI_CallFrame *frame, int kind, const char **wrong) {
  Alone a;
  memset(&a, 0, sizeof a);
  *wrong = read_kernels(frame, a.shapes, &a.call);
  return *wrong ? SUCCESS : lay_out_ahead(frame, a.shapes, &a.call);
}

static int count_threads(const XLA_FFI_CallFrame *frame, int kind, const char **wrong) {
  const XLA_FFI_Buffer *const result = frame->rets.size == 1 ? frame->rets.rets[0] : NULL;
  *wrong = !result || result->dtype != XLA_FFI_DataType_S32 || result->rank ? "gives one int32" : NULL;
  if (!*wrong) *(int32_t *)result->data = threads_of_pool(frame);
  return SUCCESS;
}

typedef int (*Compute)(const XLA_FFI_CallFrame *, int kind, const char **wrong);

static XLA_FFI_Error *handle(XLA_FFI_CallFrame *frame, Compute compute, int kind) {
  if (frame->extension_start && frame->extension_start->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata *about = ((XLA_FFI_Metadata_Extension *)frame->extension_start)->metadata;
    about->api_version.major_version = XLA_FFI_API_MAJOR;
    about->api_version.minor_version = XLA_FFI_API_MINOR;
    return NULL;
  }
  char message[128];
  const char *wrong;
  /* Also while it compiles: what is compiled is for one thread. */
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const int status = compute(frame, kind, &wrong);
  omp_set_num_threads(threads);
  if (!wrong && !status) return NULL;
  if (status == LAID_OUT_OTHERWISE) wrong = "is given kernels laid out for others";
  if (wrong)
    snprintf(message, sizeof message, "a convolution by oneDNN %s", wrong);
  else
    snprintf(message, sizeof message, "a convolution by oneDNN ended with its status %d", status);
  return failure(frame, message);
}

XLA_FFI_Error *convolution_output(XLA_FFI_CallFrame *frame) { return handle(frame, convolve_alone, OUTPUT); }
XLA_FFI_Error *convolution_input_gradient(XLA_FFI_CallFrame *frame) {
  return handle(frame, convolve_alone, INPUT_GRADIENT);
}
XLA_FFI_Error *convolution_weight_gradient(XLA_FFI_CallFrame *frame) {
  return handle(frame, convolve_alone, WEIGHT_GRADIENT);
}
XLA_FFI_Error *convolution_evaluated(XLA_FFI_CallFrame *frame) { return handle(frame, convolve_alone, EVALUATED); }
XLA_FFI_Error *convolution_prepared(XLA_FFI_CallFrame *frame) { return handle(frame, evaluate_prepared, EVALUATED); }
XLA_FFI_Error *kernels_prepared(XLA_FFI_CallFrame *frame) { return handle(frame, prepare_kernels, 0); }
XLA_FFI_Error *threads(XLA_FFI_CallFrame *frame) { return handle(frame, count_threads, 0); }
XLA_FFI_Error *convolution_trained(XLA_FFI_CallFrame *frame) { return handle(frame, convolve_in_training, 0); }
XLA_FFI_Error *convolution_trained_gradient(XLA_FFI_CallFrame *frame) {
  return handle(frame, convolve_in_training, 1);
}
XLA_FFI_Error *pooled(XLA_FFI_CallFrame *frame) { return handle(frame, pool, 0); }
XLA_FFI_Error *pooled_gradient(XLA_FFI_CallFrame *frame) { return handle(frame, pool, 1); }

/* Of each kernel how many float32 it takes once it is laid out, and in what order (a hash), in `sizes` and `layouts`; NULL,
 * or what is wrong. See `shape_links`. */
const char *prepared_layouts(const int64_t *image, const int64_t *kernels, const int64_t *windows, int links, int threads,
                             int64_t *sizes, int64_t *layouts) {
  Alone a;
  memset(&a, 0, sizeof a);
  if (links < 1 || links > MOST_LINKS) return "takes one to eight at once";
  const char *wrong = shape_links(image, kernels, windows, links, a.shapes);
  if (wrong) return wrong;
  a.call.links = links;
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const int status = find_layouts(a.shapes, threads, &a.call);
  omp_set_num_threads(before);
  for (int i = 0; i < links && !status; ++i) {
    sizes[i] = size_ahead(a.call.link[i].part) / sizeof(float);
    layouts[i] = layout_of(a.call.link[i].part);
  }
  return status ? "is one that oneDNN refuses" : NULL;
}

/* Whether so many outputs, over the batch, of a kernel [h,w,I/groups,O] are computed by products of matrices. */
int takes_products(int64_t outputs, const int64_t *kernel, int64_t groups) { return is_few_for(outputs, kernel, groups); }

/* To be called before any of them, by one thread, with the library's file; NULL, or what is wrong. */
const char *start(const char *path) {
  if (engine) return NULL;
  const char *wrong = open_library(path);
  if (wrong) return wrong;
  if (pthread_key_create(&own_key, free_own)) return "the process has no thread-specific memory left";
  if (dnnl.engine_create(&engine, CPU, 0)) return "oneDNN does not know this processor";
  if (dnnl.primitive_attr_create(&caller_scratch) ||
      dnnl.primitive_attr_set_scratchpad_mode(caller_scratch, USER_SCRATCHPAD))
    return "oneDNN could not be set up";
  return NULL;
}
