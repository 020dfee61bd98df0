/* A pretended device for the real CuPy, an H200 by its properties: device memory is ordinary memory, copies are done at
 * once, and kernels do nothing. What a device would refuse is refused here, with CUDA's own error numbers: launches
 * beyond its limits, unknown handles, and whatever a stream that captures does not permit.
 *
 * Functions cu... are found by CuPy in this library instead of libcuda.so.1. Functions cuda... take the place of those
 * of the runtime, which is a part of CuPy's modules (see pretended.py). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void* Handle;
enum {
  OK = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_PERMITTED = 900,
  INVALIDATED = 901,
  UNMATCHED = 902
};

/* Streams, events and graphs -------------------------------------------------------------------------------------- */
enum Kind { STREAM = 0x57e4, EVENT = 0xe7e4, GRAPH = 0x94a9, EXECUTABLE = 0xe8ec, FUNCTION = 0xf47c };
typedef struct Object {
  enum Kind kind;
  int capturing;        /* of a stream: 0 no, 1 active, 2 invalidated */
  int apart, relaxed;   /* of a stream: whether it does not wait for the legacy stream, and the mode of its capture */
  struct Object* graph; /* of a stream that captures, and of an event recorded on one */
  int nodes, shared;    /* of a graph; bytes of dynamic shared memory that were allowed for a function */
  char name[256];       /* of a function */
} Object;
static Object null_stream = {STREAM};
static Object* capturing[64]; /* streams that capture */
static char said[1 << 16];    /* what was refused, and why */

static int refuse(int error, const char* what) {
  if (strlen(said) + strlen(what) + 16 < sizeof said) sprintf(said + strlen(said), "%d %s\n", error, what);
  return error;
}
const char* pretended_complaints(void) { return said; }
void pretended_forget(void) { said[0] = 0; }

static Object* made(enum Kind kind) {
  Object* o = calloc(1, sizeof *o);
  o->kind = kind;
  return o;
}
static Object* checked(Handle h, enum Kind kind) {
  if (kind == STREAM && (h == NULL || h == (Handle)1 || h == (Handle)2)) return &null_stream;
  return h && ((Object*)h)->kind == kind ? h : NULL;
}
/* Make every capture invalid that a call disturbs: one that waits for the device, one on the legacy stream, or else one
 * that CUDA calls potentially unsafe, which a relaxed capture permits. */
enum Disturbance { WAITS, LEGACY, UNSAFE };
static int disturbs(enum Disturbance how, const char* what) {
  int found = 0;
  for (int i = 0; i < 64; i++)
    if (capturing[i] && !(how == LEGACY && capturing[i]->apart) && !(how == UNSAFE && capturing[i]->relaxed))
      capturing[i]->capturing = 2, found = 1;
  return found ? refuse(NOT_PERMITTED, what) : OK;
}
static int issued(Handle h, const char* what) {
  Object* s = checked(h, STREAM);
  if (!s) return refuse(INVALID_HANDLE, what);
  if (s->capturing == 2) return refuse(INVALIDATED, what);
  if (s == &null_stream) return disturbs(LEGACY, what);
  if (s->capturing) s->graph->nodes++;
  return OK;
}

/* Launches --------------------------------------------------------------------------------------------------------- */
typedef struct {
  char name[256];
  unsigned grid[3], block[3], shared;
  int captured;
} Launch;
static Launch launches[1 << 17];
static int count;
int pretended_launches(void) { return count; }
const Launch* pretended_launch(int i) { return &launches[i]; }
void pretended_restart(void) { count = 0; }

int cuLaunchKernel(Handle f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, Handle stream, void** arguments, void** extra) {
  Object* function = checked(f, FUNCTION);
  if (!function) return refuse(INVALID_HANDLE, "a launch of an unknown function");
  if (!gx || !gy || !gz || gx > 2147483647u || gy > 65535 || gz > 65535)
    return refuse(INVALID_VALUE, "the grid of a launch");
  if (!bx || !by || !bz || bx > 1024 || by > 1024 || bz > 64 || bx * by * bz > 1024)
    return refuse(INVALID_VALUE, "the block of a launch");
  if (shared > 48 * 1024 && (int)shared > function->shared)
    return refuse(INVALID_VALUE, "shared memory that was not allowed");
  int status = issued(stream, "a launch");
  if (status) return status;
  if (count < (int)(sizeof launches / sizeof *launches)) {
    Launch* l = &launches[count++];
    memcpy(l->name, function->name, sizeof l->name);
    unsigned all[] = {gx, gy, gz, bx, by, bz};
    memcpy(l->grid, all, sizeof l->grid), memcpy(l->block, all + 3, sizeof l->block);
    l->shared = shared, l->captured = checked(stream, STREAM)->capturing;
  }
  return OK;
}
int cudaLaunchKernel(const void* f, unsigned long long gxy, unsigned gz, unsigned long long bxy, unsigned bz, void** a,
                     size_t shared, Handle stream) {
  return issued(stream, "a launch by the runtime");
}
int __cudaLaunchKernel(const void* f, unsigned long long gxy, unsigned gz, unsigned long long bxy, unsigned bz,
                       void** a, size_t shared, Handle stream) {
  return issued(stream, "a launch by the runtime");
}
int __cudaGetKernel(Handle* kernel, const void* f) { return *kernel = (Handle)f, OK; }
typedef struct {
  size_t shared, constant, local;
  int threads, registers, ptx, binary; /* ptx and binary: the architecture, times 10 */
} FunctionAttributes;                  /* the beginning of cudaFuncAttributes */
int cudaFuncGetAttributes(FunctionAttributes* a, const void* f) {
  return *a = (FunctionAttributes){0, 0, 0, 1024, 32, 90, 90}, OK;
}
int cudaFuncSetAttribute(const void* f, int attribute, int value) { return OK; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void* f, int threads, size_t shared) {
  return *n = 2, OK;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void* f, int threads, size_t shared,
                                                           unsigned flags) {
  return *n = 2, OK;
}
int cuModuleLoadData(Handle* module, const void* image) {
  if (disturbs(UNSAFE, "loading a module")) return NOT_PERMITTED;
  if (memcmp(image, "\177ELF", 4) && memcmp(image, "PRETENDED", 9)) return refuse(200, "a module that is no ELF file");
  size_t size = 16;
  if (!memcmp(image, "\177ELF", 4)) { /* from its header: the place, number and size of sections */
    unsigned long long start;
    unsigned short each, number;
    memcpy(&start, (const char*)image + 40, 8), memcpy(&each, (const char*)image + 58, 2),
        memcpy(&number, (const char*)image + 60, 2);
    size = start + (size_t)each * number;
  }
  char* copy = malloc(size + 8);
  memcpy(copy, &size, 8), memcpy(copy + 8, image, size);
  *module = copy;
  return OK;
}
int cuModuleGetFunction(Handle* function, Handle module, const char* name) {
  size_t size, length = strlen(name);
  memcpy(&size, module, 8);
  const char *image = (const char*)module + 8, *end = image + size;
  int found = !memcmp(image, "PRETENDED", 9);
  for (const char* p = image; !found && p + length <= end; p++) found = !memcmp(p, name, length);
  if (!found) return refuse(NOT_FOUND, name);
  Object* o = made(FUNCTION);
  strncpy(o->name, name, sizeof o->name - 1);
  *function = o;
  return OK;
}
int cuModuleUnload(Handle module) { return OK; }
int cuFuncSetAttribute(Handle f, int attribute, int value) {
  Object* function = checked(f, FUNCTION);
  if (!function) return refuse(INVALID_HANDLE, "an attribute of an unknown function");
  if (attribute == 8 && (value < 0 || value > 232448))
    return refuse(INVALID_VALUE, "more shared memory than a block may have");
  if (attribute == 8) function->shared = value;
  return OK;
}
int cuFuncGetAttribute(int* value, int attribute, Handle f) { return *value = attribute == 0 ? 1024 : 0, OK; }
int cuGetErrorName(int error, const char** name) { return *name = "CUDA_ERROR", OK; }
int cuGetErrorString(int error, const char** text) {
  return *text = error == NOT_PERMITTED ? "operation not permitted when stream is capturing"
                                        : "refused by the pretended device",
         OK;
}
int cuInit(unsigned flags) { return OK; }
int cuCtxGetCurrent(Handle* c) { return *c = (Handle)1, OK; }
int cuCtxGetDevice(int* d) { return *d = 0, OK; }
int cuStreamGetCtx(Handle s, Handle* c) { return *c = (Handle)1, OK; }

/* The device and its memory ---------------------------------------------------------------------------------------- */
static int current;
int cudaDriverGetVersion(int* v) { return *v = 13000, OK; }
int cudaRuntimeGetVersion(int* v) { return *v = 13000, OK; }
int cudaGetDeviceCount(int* n) { return *n = 1, OK; }
int cudaGetDevice(int* d) { return *d = current, OK; }
int cudaSetDevice(int d) { return d ? refuse(101, "a device that there is not") : OK; }
int cudaDeviceSynchronize(void) { return disturbs(WAITS, "waiting for the device"); }
int cudaDeviceGetAttribute(int* v, int attribute, int device) {
  /* the numbers of cudaDeviceAttr: threads, shared memory, warp, multiprocessors, capability, shared memory by request
   */
  static const int known[][2] = {{1, 1024},  {2, 1024},  {3, 1024},    {4, 64},     {5, 2147483647}, {6, 65535},
                                 {7, 65535}, {8, 49152}, {10, 32},     {12, 65536}, {16, 132},       {39, 2048},
                                 {75, 9},    {76, 0},    {81, 233472}, {97, 232448}};
  *v = 0;
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (known[i][0] == attribute) *v = known[i][1];
  return OK;
}
int cudaGetDeviceProperties(char* properties, int device) {
  static const int warp = 32, warp_size = 308; /* the place in cudaDeviceProp, after the name and sizes of memory */
  memset(properties, 0, 512), memcpy(properties + warp_size, &warp, 4), strcpy(properties, "pretended H200");
  return OK;
}
int cudaGetDeviceProperties_v2(char* properties, int device) { return cudaGetDeviceProperties(properties, device); }
int cudaDeviceCanAccessPeer(int* v, int a, int b) { return *v = 0, OK; }
int cudaMemGetInfo(size_t* available, size_t* total) { return *available = *total = (size_t)139 << 30, OK; }
/* Zeros, of which the system makes pages when they are first touched; the address that calloc gave stands before them.
 */
static int allocated(void** p, size_t n) {
  char* all = calloc(1, n + 1024);
  if (!all) return OUT_OF_MEMORY;
  *p = (void*)(((size_t)all + 1024 - 512) / 512 * 512);
  if ((char*)*p < all + sizeof all) *p = (char*)*p + 512;
  ((char**)*p)[-1] = all;
  return OK;
}
static void freed(void* p) { free(((char**)p)[-1]); }
int cudaMalloc(void** p, size_t n) { return disturbs(UNSAFE, "allocating memory") ? NOT_PERMITTED : allocated(p, n); }
int cudaFree(void* p) { return p ? (freed(p), disturbs(UNSAFE, "freeing memory")) : OK; }
int cudaHostAlloc(void** p, size_t n, unsigned flags) { return allocated(p, n); }
int cudaFreeHost(void* p) { return p ? freed(p) : (void)0, OK; }
int cudaMemcpy(void* to, const void* from, size_t n, int kind) {
  return disturbs(UNSAFE, "a synchronous copy") ? NOT_PERMITTED : (memmove(to, from, n), OK);
}
int cudaMemcpyAsync(void* to, const void* from, size_t n, int kind, Handle s) {
  int status = issued(s, "a copy");
  return status ? status : (memmove(to, from, n), OK);
}
int cudaMemset(void* p, int v, size_t n) {
  return disturbs(UNSAFE, "a synchronous memset") ? NOT_PERMITTED : (memset(p, v, n), OK);
}
int cudaMemsetAsync(void* p, int v, size_t n, Handle s) {
  int status = issued(s, "a memset");
  return status ? status : (memset(p, v, n), OK);
}
typedef struct {
  int type, device;
  void *on_device, *on_host;
  long reserved[8];
} Attributes;
int cudaPointerGetAttributes(Attributes* a, const void* p) {
  a->type = 2, a->device = 0, a->on_device = (void*)p, a->on_host = NULL;
  return OK;
}
int cudaGetLastError(void) { return OK; }
int cudaPeekAtLastError(void) { return OK; }
const char* cudaGetErrorName(int error) {
  return error == NOT_PERMITTED ? "cudaErrorStreamCaptureUnsupported"
         : error == INVALIDATED ? "cudaErrorStreamCaptureInvalidated"
                                : "cudaError";
}
static char text[64];
const char* cudaGetErrorString(int error) {
  return error == NOT_PERMITTED ? "operation not permitted when stream is capturing"
         : error == INVALIDATED ? "operation failed due to a previous error during capture"
                                : (snprintf(text, sizeof text, "error %d of the pretended device", error), text);
}

/* Streams ---------------------------------------------------------------------------------------------------------- */
int cudaStreamCreate(Handle* s) { return *s = made(STREAM), OK; }
int cudaStreamCreateWithFlags(Handle* s, unsigned flags) {
  return *s = made(STREAM), ((Object*)*s)->apart = flags & 1, OK;
}
int cudaStreamCreateWithPriority(Handle* s, unsigned flags, int priority) {
  return *s = made(STREAM), ((Object*)*s)->apart = flags & 1, OK;
}
int cudaStreamDestroy(Handle h) { return OK; }
int cudaStreamSynchronize(Handle h) {
  Object* s = checked(h, STREAM);
  if (!s) return refuse(INVALID_HANDLE, "waiting for an unknown stream");
  return s->capturing        ? disturbs(WAITS, "waiting for a stream")
         : s == &null_stream ? disturbs(LEGACY, "waiting for the legacy stream")
                             : OK;
}
int cudaStreamQuery(Handle h) {
  return checked(h, STREAM)->capturing ? disturbs(WAITS, "asking whether a stream has ended") : OK;
}
int cudaStreamBeginCapture(Handle h, int mode) {
  Object* s = checked(h, STREAM);
  if (!s || s == &null_stream) return refuse(NOT_PERMITTED, "a capture of the legacy stream");
  if (s->capturing) return refuse(INVALID_VALUE, "a capture within a capture");
  s->capturing = 1, s->relaxed = mode == 2, s->graph = made(GRAPH);
  for (int i = 0; i < 64; i++)
    if (!capturing[i]) return capturing[i] = s, OK;
  return OUT_OF_MEMORY;
}
int cudaStreamEndCapture(Handle h, Handle* graph) {
  Object* s = checked(h, STREAM);
  *graph = NULL;
  if (!s || !s->capturing) return refuse(INVALID_VALUE, "the end of no capture");
  int was = s->capturing;
  s->capturing = 0;
  for (int i = 0; i < 64; i++)
    if (capturing[i] == s) capturing[i] = NULL;
  if (was == 2) return refuse(INVALIDATED, "the end of an invalid capture");
  *graph = s->graph;
  return OK;
}
int cudaStreamIsCapturing(Handle h, int* status) {
  Object* s = checked(h, STREAM);
  if (!s) return refuse(INVALID_HANDLE, "asking an unknown stream");
  if (s == &null_stream && disturbs(LEGACY, "asking the legacy stream")) return NOT_PERMITTED;
  *status = s->capturing;
  return s->capturing == 2 ? INVALIDATED : OK; /* CuPy raises this error */
}
int cudaEventCreate(Handle* e) { return *e = made(EVENT), OK; }
int cudaEventCreateWithFlags(Handle* e, unsigned flags) { return *e = made(EVENT), OK; }
int cudaEventDestroy(Handle e) { return OK; }
int cudaEventRecord(Handle e, Handle h) {
  Object *s = checked(h, STREAM), *event = checked(e, EVENT);
  if (!s || !event) return refuse(INVALID_HANDLE, "recording an event");
  if (s->capturing == 2) return refuse(INVALIDATED, "recording an event");
  event->graph = s->capturing ? s->graph : NULL;
  return OK;
}
int cudaEventQuery(Handle e) { return OK; }
int cudaEventSynchronize(Handle e) {
  return checked(e, EVENT)->graph ? disturbs(WAITS, "waiting for an event of a capture") : OK;
}
int cudaEventElapsedTime(float* ms, Handle a, Handle b) { return *ms = 1, OK; }
int cudaStreamWaitEvent(Handle h, Handle e, unsigned flags) {
  Object *s = checked(h, STREAM), *event = checked(e, EVENT);
  if (!s || !event) return refuse(INVALID_HANDLE, "waiting for an event");
  if (s->capturing && event->graph != s->graph)
    return s->capturing = 2, refuse(905, "waiting, in a capture, for an event outside it");
  if (!s->capturing && event->graph) return refuse(904, "waiting for an event of a capture that has not ended");
  return OK;
}

/* Graphs ----------------------------------------------------------------------------------------------------------- */
int cudaGraphInstantiate(Handle* x, Handle g, unsigned long long flags) {
  Object* graph = checked(g, GRAPH);
  if (!graph) return refuse(INVALID_VALUE, "an unknown graph");
  Object* executable = made(EXECUTABLE);
  executable->nodes = graph->nodes;
  *x = executable;
  return OK;
}
int cudaGraphInstantiateWithFlags(Handle* x, Handle g, unsigned long long flags) {
  return cudaGraphInstantiate(x, g, flags);
}
int cudaGraphDestroy(Handle g) { return OK; }
int cudaGraphExecDestroy(Handle g) { return OK; }
static int replays, replayed;
int pretended_replays(void) { return replays; }
int pretended_replayed_nodes(void) { return replayed; }
int cudaGraphLaunch(Handle x, Handle s) {
  Object* executable = checked(x, EXECUTABLE);
  if (!executable) return refuse(INVALID_VALUE, "an unknown graph");
  replays++, replayed = executable->nodes;
  return issued(s, "a launch of a graph");
}
int cudaGraphUpload(Handle x, Handle s) {
  return checked(x, EXECUTABLE) ? OK : refuse(INVALID_VALUE, "an unknown graph");
}
int cudaGraphDebugDotPrint(Handle g, const char* path, unsigned flags) {
  FILE* f = fopen(path, "w");
  return f ? (fprintf(f, "digraph { }"), fclose(f), OK) : INVALID_VALUE;
}
