/* What XLA hands over with a call of any but training's, checked and put into words of onednn_call.h. */
#include "onednn_buffers.h"
#include "onednn_call.h"

static int is_for_channels(const XLA_FFI_Buffer *buffer, int64_t channels) {
  return is_array(buffer, 1) && buffer->dims[0] == channels;
}

/* The shape of a convolution in evaluation of such an image with such a kernel. NULL, or what is wrong. */
static const char *shape_link(const int64_t *image, const int64_t *kernel, const int64_t *window, Shape *s) {
  const int64_t *const w = memcpy(s->window, window, sizeof s->window);
  memcpy(s->image, image, sizeof s->image);
  memcpy(s->kernel, kernel, sizeof s->kernel);
  if (w[0] < 1 || w[1] < 1) return "takes steps of one or more";
  const int64_t output[] = {image[0], (image[1] + w[2] + w[3] - kernel[0]) / w[0] + 1,
                            (image[2] + w[4] + w[5] - kernel[1]) / w[1] + 1, kernel[3]};
  memcpy(s->output, output, sizeof output);
  s->kind = EVALUATED;
  return NULL;
}

/* Of convolutions one after the other: each is of what the one before it gives. `kernels`: the shapes of those that were
 * laid out before the call. NULL, or what is wrong. */
static const char *read_links(const XLA_FFI_CallFrame *frame, const int64_t *windows, const int64_t *kernels,
                              Shape *shapes, Call *call) {
  const XLA_FFI_Buffer *const *operand = operands_of(frame), *const result = frame->rets.rets[0];
  const int residual = windows[NUMBERS * (call->links - 1) + RESIDUAL] != 0, more = frame->args.size % 3 == 2;
  /* Of one convolution alone the image is read once more when outputs stand where it was. */
  if (residual && (more || call->links == 1)) return "takes one addend, or the image if there are several convolutions";
  const XLA_FFI_Buffer *const addend = more ? operand[frame->args.size - 1] : residual ? operand[0] : NULL;
  if (!is_array(operand[0], 4) || !is_array(result, 4)) return "takes float32 arrays of four dimensions";
  const int64_t *image = operand[0]->dims;
  for (int i = 0; i < call->links; ++i, image = shapes[i - 1].output) {
    const XLA_FFI_Buffer *kernel = operand[1 + 3 * i], *scale = operand[2 + 3 * i], *shift = operand[3 + 3 * i];
    if (!is_array(kernel, kernels ? 1 : 4) || !kernel->dims[0])
      return kernels ? "takes kernels that are laid out" : "takes float32 arrays of four dimensions";
    const char *wrong = shape_link(image, kernels ? kernels + 4 * i : kernel->dims, windows + NUMBERS * i, &shapes[i]);
    if (wrong) return wrong;
    if (!is_for_channels(scale, shapes[i].output[3]) || !is_for_channels(shift, shapes[i].output[3]))
      return "takes a scale and a shift of each channel";
    call->link[i] = (Link){.plain = kernel->data, .scale = scale->data, .shift = shift->data};
    if (kernels) call->link[i].ahead = kernel->dims[0] * sizeof(float);
  }
  if (memcmp(result->dims, image, sizeof shapes->output)) return "gives an output of another shape";
  if (addend && (!is_array(addend, 4) || memcmp(addend->dims, image, sizeof shapes->output)))
    return "takes an addend of the output's shape";
  if (addend) shapes[call->links - 1].kind = EVALUATED_SUM;
  call->image = operand[0]->data;
  call->output = result->data;
  call->addend = addend ? addend->data : NULL;
  return NULL;
}

/* The same, of one alone or of a gradient. */
static const char *read_one(const XLA_FFI_CallFrame *frame, Kind kind, const int64_t *window, Shape *shape,
                            Call *call) {
  const XLA_FFI_Buffer *const *operand = operands_of(frame), *const result = frame->rets.rets[0];
  const XLA_FFI_Buffer *const image = kind == INPUT_GRADIENT ? result : operand[0];
  const XLA_FFI_Buffer *const kernel = kind == WEIGHT_GRADIENT ? result : operand[1];
  const XLA_FFI_Buffer *const output = kind == OUTPUT ? result : operand[kind == WEIGHT_GRADIENT];
  if (!is_array(image, 4) || !is_array(kernel, 4) || !is_array(output, 4))
    return "takes float32 arrays of four dimensions";
  shape->kind = kind;
  memcpy(shape->image, image->dims, sizeof shape->image);
  memcpy(shape->kernel, kernel->dims, sizeof shape->kernel);
  memcpy(shape->output, output->dims, sizeof shape->output);
  memcpy(shape->window, window, sizeof shape->window);
  call->image = image->data;
  call->output = output->data;
  call->link->plain = kernel->data;
  return NULL;
}

/* What no reader of a convolution lets pass. */
static const char *find_fault(const Shape *s) {
  if (s->image[0] < 1 || s->image[0] != s->output[0] || s->window[GROUPS] < 1)
    return "takes one image or more, and gives as many, in one group or more";
  if (s->kernel[2] * s->window[GROUPS] != s->image[3] || s->kernel[3] != s->output[3])
    return "takes a kernel for the channels of image and output";
  return NULL;
}

static int is_numbers(const XLA_FFI_Array *attribute, size_t count) {
  return attribute->dtype == XLA_FFI_DataType_S64 && attribute->size == count;
}

/* Attributes come in the order of their names. NULL, or what is wrong. */
static const char *read(const XLA_FFI_CallFrame *frame, Kind kind, int ahead, Shape *shapes, Call *call) {
  const int64_t operands = frame->args.size;
  if (frame->rets.size != 1 || frame->attrs.size != 1 + ahead) return "takes one attribute, or two, and gives one result";
  if (kind == EVALUATED ? operands < 4 || operands % 3 == 0 : operands != 2)
    return "takes two operands or, for each of several, three, and one or two";
  call->links = kind == EVALUATED ? (int)((operands - 1) / 3) : 1;
  if (call->links > MOST_LINKS) return "takes eight at once";
  const XLA_FFI_Array *window = frame->attrs.attrs[ahead], *kernels = ahead ? frame->attrs.attrs[0] : NULL;
  if (!is_numbers(window, NUMBERS * call->links)) return "takes a window of nine int64";
  if (kernels && !is_numbers(kernels, 4 * call->links)) return "takes the kernels' shapes in four int64 each";
  const char *wrong = kind == EVALUATED
                          ? read_links(frame, window->data, kernels ? kernels->data : NULL, shapes, call)
                          : read_one(frame, kind, window->data, shapes, call);
  for (int i = 0; i < call->links && !wrong; ++i) wrong = find_fault(&shapes[i]);
  return wrong;
}

/* The shapes of convolutions in evaluation one after the other: of int64[5], the image's shape and whether something is
 * added to the last one's output, kernels' shapes and windows. NULL, or what is wrong. */
static const char *shape_links(const int64_t *image, const int64_t *kernels, const int64_t *windows, int links,
                               Shape *shapes) {
  const int added = image[4] != 0;
  const char *wrong = NULL;
  for (int i = 0; i < links && !wrong; ++i, image = shapes[i - 1].output) {
    wrong = shape_link(image, kernels + 4 * i, windows + NUMBERS * i, &shapes[i]);
    if (!wrong) wrong = find_fault(&shapes[i]);
  }
  if (added) shapes[links - 1].kind = EVALUATED_SUM;
  return wrong;
}

static const char *read_kernels(const XLA_FFI_CallFrame *frame, Shape *shapes, Call *call) {
  const int64_t links = frame->args.size;
  if (links < 1 || links > MOST_LINKS || frame->rets.size != links || frame->attrs.size != 2)
    return "takes one to eight kernels and as many results, and two attributes";
  const XLA_FFI_Array *image = frame->attrs.attrs[0], *window = frame->attrs.attrs[1];
  if (!is_numbers(image, 5) || !is_numbers(window, NUMBERS * links))
    return "takes an image's shape in five int64 and a window of nine";
  int64_t kernels[4 * MOST_LINKS];
  call->links = (int)links;
  for (int i = 0; i < links; ++i) {
    const XLA_FFI_Buffer *kernel = operands_of(frame)[i], *result = frame->rets.rets[i];
    if (!is_array(kernel, 4) || !is_array(result, 1)) return "takes kernels of four dimensions, and gives them of one";
    memcpy(kernels + 4 * i, kernel->dims, 4 * sizeof *kernels);
    call->link[i] = (Link){.plain = kernel->data, .kernel = result->data, .ahead = result->dims[0] * sizeof(float)};
  }
  return shape_links(image->data, kernels, window->data, call->links, shapes);
}
