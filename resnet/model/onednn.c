/* A float32 convolution and its two gradients as XLA custom calls, computed by oneDNN; onednn.py builds and loads it.
 *
 * Handlers for XLA's foreign function interface (https://docs.jax.dev/en/latest/ffi.html), each of one result and one
 * attribute, `window`, int64[8]: strides down and across, padding top, bottom, left and right, groups, and whether the
 * second of them ends in a ReLU.
 *
 *   convolution_output            image [N,H,W,I], kernel [h,w,I/groups,O] -> output [N,H',W',O]
 *   convolution_evaluated         image, kernel, scale [O], shift [O], addend [N,H',W',O] or none -> output
 *                                 output = ReLU(convolution · scale + shift + addend)
 *   convolution_input_gradient    output's gradient, kernel                -> image's gradient
 *   convolution_weight_gradient   image, output's gradient                 -> kernel's gradient
 *
 * A batch is cut into as many parts as XLA has threads, and XLA's threads do them, each with oneDNN on that thread alone.
 * With threads of OpenMP's beside XLA's, as oneDNN would have it, whatever stands between two convolutions is slowed by
 * those of the last one spinning on: ResNet-50, 64 px, batch 32 on 2 cores, 300 ms a step; without them 238.
 */
#define _GNU_SOURCE
#include <stdio.h>

#include "onednn_compiled.h"

/* Weight gradients of this many parts at most are added up, whatever the number of threads; and the bytes of memory
 * beside operands and result, of all parts, for which there are fewer parts. */
enum { MOST_SUMMANDS = 16, MOST_MEMORY = 1 << 30 };

/* Fewer bytes of a kernel than these one thread lays out sooner than another is awake. */
enum { ALONE = 1 << 18 };

/* One call of a handler. */
typedef struct {
  const Compiled *part, *last; /* of each part, and of the last, which may have fewer images */
  int parts, sums; /* the latter: pieces that the sum of gradients is cut into */
  char *image, *kernel, *output, *scale, *shift, *addend;
  char *plain; /* the kernel, or its gradient, as XLA has it; `kernel` is the same where oneDNN wants it so */
  size_t image_step, output_step, kernel_step; /* bytes; the last is 0 unless each part has a kernel's gradient */
  atomic_int status;
} Call;

static void note(Call *call, int status) {
  if (status) atomic_store(&call->status, status);
}

/* What oneDNN is given in one execution. */
typedef struct {
  int count, lacking, names[MOST_ARGUMENTS]; /* lacking: there was no memory for one of them */
  const void *descriptions[MOST_ARGUMENTS];
  void *memory[MOST_ARGUMENTS];
} Operands;

static void give(Operands *operands, int name, const void *description, void *memory) {
  operands->lacking |= !memory;
  operands->names[operands->count] = name;
  operands->descriptions[operands->count] = description;
  operands->memory[operands->count++] = memory;
}

static void *copy_of(const void *addend, size_t size) {
  void *copy = own_memory(ADDEND, size);
  return copy ? memcpy(copy, addend, size) : NULL;
}

static void do_part(void *context, int number) {
  static const int names[][3] = {
      [OUTPUT] = {SRC, WEIGHTS, DST},          [INPUT_GRADIENT] = {DIFF_SRC, WEIGHTS, DIFF_DST},
      [WEIGHT_GRADIENT] = {SRC, DIFF_WEIGHTS, DIFF_DST}, [EVALUATED] = {SRC, WEIGHTS, DST},
      [EVALUATED_SUM] = {SRC, WEIGHTS, DST},
  };
  Call *call = context;
  const Compiled *c = number == call->parts - 1 ? call->last : call->part;
  const int threads = omp_get_max_threads(), kind = c->shape.kind;
  char *const output = call->output + number * call->output_step;
  Operands operands = {0};
  give(&operands, names[kind][0], c->image, call->image + number * call->image_step);
  give(&operands, names[kind][1], c->laid_out, call->kernel + number * call->kernel_step);
  give(&operands, names[kind][2], c->output, output);
  if (kind >= EVALUATED) {
    give(&operands, STEP(0), c->channels, call->scale);
    give(&operands, STEP(1), c->channels, call->shift);
  }
  if (kind == EVALUATED_SUM) {
    const size_t size = dnnl.memory_desc_get_size(c->output);
    char *const addend = call->addend + number * call->output_step;
    /* XLA leaves the addend where the output goes, see onednn.py. */
    if (c->in_place && addend != output) memcpy(output, addend, size);
    if (!c->in_place) give(&operands, STEP(2), c->output, addend == output ? copy_of(addend, size) : addend);
  }
  if (c->scratch_size) give(&operands, SCRATCHPAD, c->scratch, own_memory(SCRATCH, c->scratch_size));
  omp_set_num_threads(1);
  note(call, operands.lacking ? OUT_OF_MEMORY
                              : execute(c->primitive, operands.count, operands.names, operands.descriptions,
                                        operands.memory));
  omp_set_num_threads(threads);
}

/* Lay a slice of the kernel out as oneDNN wants it; of a kernel's gradient, back. */
static void lay_out(void *context, int number) {
  Call *call = context;
  const int threads = omp_get_max_threads(), gradient = call->part->shape.kind == WEIGHT_GRADIENT;
  omp_set_num_threads(1);
  note(call, reorder(&call->part->slice[number], gradient ? call->kernel : call->plain,
                     gradient ? call->plain : call->kernel));
  omp_set_num_threads(threads);
}

/* Add the parts' weight gradients up, a piece of them, in the order of the parts. */
static void add_up(void *context, int number) {
  const Call *call = context;
  const size_t all = call->part->laid_out_size / sizeof(float), each = (all + call->sums - 1) / call->sums;
  const size_t first = number * each < all ? number * each : all, end = first + each < all ? first + each : all;
  float *total = (float *)call->kernel;
  for (int part = 1; part < call->parts; ++part) {
    const float *more = (const float *)(call->kernel + part * call->kernel_step);
    for (size_t i = first; i < end; ++i) total[i] += more[i];
  }
}

/* Cut the batch into `most` parts or fewer, the last of which may be smaller; find what is compiled for both. */
static int cut(const Shape *shape, int64_t most, Call *call) {
  const int64_t images = shape->image[0], each = (images + most - 1) / most;
  Shape part = *shape, last = *shape;
  part.image[0] = part.output[0] = each;
  call->parts = (int)((images + each - 1) / each);
  last.image[0] = last.output[0] = images - (call->parts - 1) * each;
  TRY(find(&part, &call->part));
  return find(&last, &call->last);
}

/* For a smaller part oneDNN may want the kernel laid out otherwise, of which there is but one: then into equal parts. */
static int cut_alike(const Shape *shape, int64_t most, Call *call) {
  TRY(cut(shape, most, call));
  if (dnnl.memory_desc_equal(call->part->laid_out, call->last->laid_out)) return SUCCESS;
  while (shape->image[0] % most) --most;
  return cut(shape, most, call);
}

static int cut_up(const Shape *shape, int64_t most, Call *call) {
  TRY(cut_alike(shape, most, call));
  const int gradient = shape->kind == WEIGHT_GRADIENT;
  const size_t memory = call->part->scratch_size + (gradient ? call->part->laid_out_size : 0);
  const int64_t fit = memory ? MOST_MEMORY / (int64_t)memory : call->parts;
  return fit >= call->parts ? SUCCESS : cut_alike(shape, fit > 1 ? fit : 1, call);
}

static int convolve(const XLA_FFI_CallFrame *frame, const Shape *shape, Call call) {
  const int threads = threads_of_pool(frame), gradient = shape->kind == WEIGHT_GRADIENT;
  const int64_t images = shape->image[0], wanted = gradient && threads > MOST_SUMMANDS ? MOST_SUMMANDS : threads;
  TRY(cut_up(shape, wanted < images ? wanted : images, &call));
  const int64_t *i = call.part->shape.image, *o = call.part->shape.output;
  call.image_step = i[0] * i[1] * i[2] * i[3] * sizeof(float);
  call.output_step = o[0] * o[1] * o[2] * o[3] * sizeof(float);
  const int slices = call.part->slices, helpers = call.part->laid_out_size < ALONE ? 1 : threads;
  const size_t size = call.part->laid_out_size, aligned = (size + 63) / 64 * 64;
  call.plain = call.kernel;
  call.sums = threads;
  if (slices || (gradient && call.parts > 1)) {
    call.kernel = own_memory(LAID_OUT, gradient ? call.parts * aligned : size);
    if (!call.kernel) return OUT_OF_MEMORY;
  }
  if (gradient) call.kernel_step = aligned;
  if (!gradient && slices && !do_in_parts(frame, helpers, slices, lay_out, &call)) return OUT_OF_MEMORY;
  TRY(atomic_load(&call.status));
  if (!do_in_parts(frame, threads, call.parts, do_part, &call)) return OUT_OF_MEMORY;
  TRY(atomic_load(&call.status));
  if (!gradient || call.kernel == call.plain) return SUCCESS;
  if (call.parts > 1 && !do_in_parts(frame, threads, call.sums, add_up, &call)) return OUT_OF_MEMORY;
  if (!slices) memcpy(call.plain, call.kernel, size);
  if (slices && !do_in_parts(frame, helpers, slices, lay_out, &call)) return OUT_OF_MEMORY;
  return atomic_load(&call.status);
}

static XLA_FFI_Error *failure(const XLA_FFI_CallFrame *frame, const char *message) {
  XLA_FFI_Error_Create_Args it = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL, message, XLA_FFI_Error_Code_INTERNAL};
  return frame->api->XLA_FFI_Error_Create(&it);
}

static int is_array(const XLA_FFI_Buffer *buffer, int64_t rank) {
  return buffer->dtype == XLA_FFI_DataType_F32 && buffer->rank == rank;
}

static XLA_FFI_Error *handle(XLA_FFI_CallFrame *frame, Kind kind) {
  if (frame->extension_start && frame->extension_start->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata *about = ((XLA_FFI_Metadata_Extension *)frame->extension_start)->metadata;
    about->api_version.major_version = XLA_FFI_API_MAJOR;
    about->api_version.minor_version = XLA_FFI_API_MINOR;
    return NULL;
  }
  const int evaluated = kind >= EVALUATED;
  const XLA_FFI_Buffer *operand[5];
  const size_t operands = kind == EVALUATED_SUM ? 5 : evaluated ? 4 : 2;
  if (frame->args.size != (int64_t)operands || frame->rets.size != 1 || frame->attrs.size != 1)
    return failure(frame, "a convolution by oneDNN takes two, four or five operands, one result and one attribute");
  for (size_t i = 0; i < operands; ++i) operand[i] = frame->args.args[i];
  const XLA_FFI_Buffer *result = frame->rets.rets[0];
  const XLA_FFI_Buffer *image = kind == INPUT_GRADIENT ? result : operand[0];
  const XLA_FFI_Buffer *kernel = kind == WEIGHT_GRADIENT ? result : operand[1];
  const XLA_FFI_Buffer *output = kind == INPUT_GRADIENT ? operand[0] : kind == WEIGHT_GRADIENT ? operand[1] : result;
  if (!is_array(image, 4) || !is_array(kernel, 4) || !is_array(output, 4))
    return failure(frame, "a convolution by oneDNN takes float32 arrays of four dimensions");
  const XLA_FFI_Array *window = frame->attrs.attrs[0];
  Shape shape = {.kind = kind};
  if (window->dtype != XLA_FFI_DataType_S64 || window->size * sizeof(int64_t) != sizeof shape.window)
    return failure(frame, "a convolution by oneDNN takes a window of eight int64");
  memcpy(shape.image, image->dims, sizeof shape.image);
  memcpy(shape.kernel, kernel->dims, sizeof shape.kernel);
  memcpy(shape.output, output->dims, sizeof shape.output);
  memcpy(shape.window, window->data, sizeof shape.window);
  if (shape.image[0] < 1 || shape.image[0] != shape.output[0] || shape.window[GROUPS] < 1)
    return failure(frame, "a convolution by oneDNN takes one image or more, and gives as many, in one group or more");
  for (size_t i = 2; i < 4 && evaluated; ++i)
    if (!is_array(operand[i], 1) || operand[i]->dims[0] != shape.kernel[3])
      return failure(frame, "a convolution by oneDNN takes a scale and a shift of each channel");
  if (kind == EVALUATED_SUM &&
      (!is_array(operand[4], 4) || memcmp(operand[4]->dims, shape.output, sizeof shape.output)))
    return failure(frame, "a convolution by oneDNN takes an addend of the output's shape");
  const Call call = {
      .image = image->data,
      .kernel = kernel->data,
      .output = output->data,
      .scale = evaluated ? operand[2]->data : NULL,
      .shift = evaluated ? operand[3]->data : NULL,
      .addend = kind == EVALUATED_SUM ? operand[4]->data : NULL,
  };
  /* Also while it compiles: what is compiled is for one thread. */
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const int status = convolve(frame, &shape, call);
  omp_set_num_threads(threads);
  if (!status) return NULL;
  char message[64];
  snprintf(message, sizeof message, "a convolution by oneDNN ended with its status %d", status);
  return failure(frame, message);
}

XLA_FFI_Error *convolution_output(XLA_FFI_CallFrame *frame) { return handle(frame, OUTPUT); }
XLA_FFI_Error *convolution_input_gradient(XLA_FFI_CallFrame *frame) { return handle(frame, INPUT_GRADIENT); }
XLA_FFI_Error *convolution_weight_gradient(XLA_FFI_CallFrame *frame) { return handle(frame, WEIGHT_GRADIENT); }
XLA_FFI_Error *convolution_evaluated(XLA_FFI_CallFrame *frame) {
  return handle(frame, frame->args.size == 5 ? EVALUATED_SUM : EVALUATED);
}

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
