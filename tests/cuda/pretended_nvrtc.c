/* A compiler for CuPy's own kernels on a pretended device: every program becomes a module that has every function. */
#include <stdlib.h>
#include <string.h>

static const char image[] = "PRETENDED";
/* A version that no real compiler has, so that nothing from here is taken for its work. */
int nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 999, 0; }
int nvrtcCreateProgram(void** program, const char* source, const char* name, int headers, const char* const* a,
                       const char* const* b) {
  return *program = calloc(1, 8), 0;
}
int nvrtcDestroyProgram(void** program) { return *program = NULL, 0; }
int nvrtcCompileProgram(void* program, int count, const char* const* options) { return 0; }
int nvrtcGetPTXSize(void* program, size_t* size) { return *size = sizeof image, 0; }
int nvrtcGetPTX(void* program, char* to) { return memcpy(to, image, sizeof image), 0; }
int nvrtcGetCUBINSize(void* program, size_t* size) { return nvrtcGetPTXSize(program, size); }
int nvrtcGetCUBIN(void* program, char* to) { return nvrtcGetPTX(program, to); }
int nvrtcGetProgramLogSize(void* program, size_t* size) { return *size = 1, 0; }
int nvrtcGetProgramLog(void* program, char* to) { return *to = 0; }
int nvrtcAddNameExpression(void* program, const char* name) { return 0; }
int nvrtcGetLoweredName(void* program, const char* name, const char** lowered) { return *lowered = strdup(name), 0; }
const char* nvrtcGetErrorString(int error) { return "refused"; }
