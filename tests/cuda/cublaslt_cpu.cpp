// A stand-in for libcublasLt in ordinary memory. It refuses calls that the real library refuses, such as attributes of a
// wrong size, and some that it would accept but that give wrong or slow results: an algorithm asked for before the bias
// has its pointer, operands less aligned than was promised, sums that are added up in 16 bits.
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Kind { HANDLE, DESCRIPTION, LAYOUT, PREFERENCE };
const char* complaint = "";

int refuse(Status status, const char* why) {
  complaint = why;
  return status;
}

// The bytes of each attribute, from cublasLt.h.
const std::map<int, size_t> DESCRIPTION_BYTES = {{0, 4}, {1, 4}, {2, 4}, {3, 4}, {4, 4}, {7, 4}, {8, 8}, {10, 8}, {26, 4}};
const std::map<int, size_t> LAYOUT_BYTES = {{0, 4}, {1, 4}, {2, 8}, {3, 8}, {4, 8}, {5, 4}, {6, 8}};
const std::map<int, size_t> PREFERENCE_BYTES = {{0, 4}, {1, 8}, {3, 4}, {5, 4}, {6, 4}, {7, 4}, {8, 4}};
enum { TRANSA = 3, TRANSB, EPILOGUE = 7, BIAS_POINTER = 8, BATCH_COUNT = 5, BATCH_OFFSET = 6 };
enum { WORKSPACE = 1, REDUCTION = 3, ALIGNMENT = 5 };
enum { BIAS = 4, BGRADB = 512 };

struct Object {
  Kind kind;
  int type = 0, scale = 0;  // of a description: the compute type
  int64_t rows = 0, columns = 0, ld = 0;
  std::map<int, int64_t> attributes;

  int64_t at(int number, int64_t otherwise = 0) const {
    auto found = attributes.find(number);
    return found == attributes.end() ? otherwise : found->second;
  }
};

// What an algorithm was chosen for.
struct Algorithm {
  uint64_t magic;
  int64_t epilogue, a, b, d, bias_alignment, workspace;
};
static_assert(sizeof(Algorithm) <= 64, "an algorithm has 64 bytes");
constexpr uint64_t MAGIC = 0x74690;
struct Found {
  Algorithm algorithm;
  char rest[64 - sizeof(Algorithm)];
  size_t workspace;
  int status;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Found) == 96, "cublasLtMatmulHeuristicResult_t has 96 bytes");

int set(void* object, Kind kind, const std::map<int, size_t>& known, int number, const void* data, size_t size) {
  Object* target = static_cast<Object*>(object);
  auto found = known.find(number);
  if (!target || target->kind != kind) return refuse(INVALID_VALUE, "not an object of this kind");
  if (found == known.end()) return refuse(INVALID_VALUE, "an unknown attribute");
  if (!data || size != found->second) return refuse(INVALID_VALUE, "an attribute of another size");
  int64_t value = 0;
  if (size == 4) {
    int32_t narrow;
    std::memcpy(&narrow, data, 4);
    value = narrow;
  } else {
    std::memcpy(&value, data, 8);
  }
  target->attributes[number] = value;
  return SUCCESS;
}

size_t bytes_of(int type) { return type == 1 ? 8 : type == 0 ? 4 : 2; }

double read(const char* at, int type) {
  if (type == 1) return *reinterpret_cast<const double*>(at);
  if (type == 0) return *reinterpret_cast<const float*>(at);
  if (type == 2) return *reinterpret_cast<const _Float16*>(at);
  uint32_t bits = uint32_t(*reinterpret_cast<const uint16_t*>(at)) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

void write(char* at, int type, double value) {
  if (type == 1) *reinterpret_cast<double*>(at) = value;
  if (type == 0) *reinterpret_cast<float*>(at) = value;
  if (type == 2) *reinterpret_cast<_Float16*>(at) = _Float16(float(value));
  if (type != 14) return;
  float narrow = value;
  uint32_t bits;
  std::memcpy(&bits, &narrow, 4);
  bits = narrow != narrow ? bits | 0x00400000 : bits + 0x7fff + ((bits >> 16) & 1);
  *reinterpret_cast<uint16_t*>(at) = bits >> 16;
}

// A matrix of the stack, as op() has it: element (i, j).
template <typename Wide> std::vector<Wide> matrix(const char* at, const Object& layout, bool transposed) {
  int64_t rows = transposed ? layout.columns : layout.rows, columns = transposed ? layout.rows : layout.columns;
  std::vector<Wide> found(rows * columns);
  for (int64_t j = 0; j < columns; j++)
    for (int64_t i = 0; i < rows; i++) {
      int64_t place = transposed ? j + i * layout.ld : i + j * layout.ld;
      found[j * rows + i] = read(at + place * bytes_of(layout.type), layout.type);
    }
  return found;
}

template <typename Wide> void multiply(const Object& how, const char* a, const Object& la, const char* b, const Object& lb, char* d, const Object& ld) {
  bool ta = how.at(TRANSA), tb = how.at(TRANSB);
  int64_t m = ld.rows, n = ld.columns, k = ta ? la.rows : la.columns, epilogue = how.at(EPILOGUE, 1);
  char* bias = reinterpret_cast<char*>(how.at(BIAS_POINTER));
  int64_t size = bytes_of(ld.type);
  std::vector<double> sums(epilogue == BGRADB ? n : 0);
  for (int64_t batch = 0; batch < ld.at(BATCH_COUNT, 1); batch++) {
    auto left = matrix<Wide>(a + batch * la.at(BATCH_OFFSET) * bytes_of(la.type), la, ta);
    auto right = matrix<Wide>(b + batch * lb.at(BATCH_OFFSET) * bytes_of(lb.type), lb, tb);
    char* target = d + batch * ld.at(BATCH_OFFSET) * size;
    for (int64_t j = 0; j < n; j++) {
      std::vector<Wide> column(m, Wide(0));
      for (int64_t l = 0; l < k; l++) {
        Wide factor = right[j * k + l];
        if (epilogue == BGRADB) sums[j] += factor;
        for (int64_t i = 0; i < m; i++) column[i] += left[l * m + i] * factor;
      }
      for (int64_t i = 0; i < m; i++) {
        double value = column[i];
        if (epilogue == BIAS) value += read(bias + i * size, ld.type);
        write(target + (i + j * ld.ld) * size, ld.type, value);
      }
    }
  }
  for (size_t i = 0; i < sums.size(); i++) write(bias + i * size, ld.type, sums[i]);
}

int64_t alignment_of(int64_t address) { return address & -address; }
bool needs_bias(int64_t epilogue) { return epilogue == BIAS || epilogue == BGRADB; }
Object& object(void* pointer) { return *static_cast<Object*>(pointer); }

}  // namespace

extern "C" {

int largest_epilogue = 1 << 20;  // there is no algorithm for larger ones; set by tests

const char* last_complaint() { return complaint; }
void* copy_of(void* description) { return new Object(object(description)); }
long long attribute_of(void* any, int number) { return object(any).at(number, -1); }

int cublasLtCreate(void** made) { return *made = new Object{HANDLE}, SUCCESS; }
int cublasLtMatmulDescCreate(void** made, int compute, int scale) {
  bool fits = (compute == 70) == (scale == 1) && (compute == 68 || compute == 70 || compute == 77) && (scale == 0 || scale == 1);
  if (!fits) return refuse(INVALID_VALUE, "a compute type that does not fit its scale");
  return *made = new Object{DESCRIPTION, compute, scale}, SUCCESS;
}
int cublasLtMatrixLayoutCreate(void** made, int type, uint64_t rows, uint64_t columns, int64_t ld) {
  if (ld < int64_t(rows)) return refuse(INVALID_VALUE, "a leading dimension below the number of rows");
  return *made = new Object{LAYOUT, type, 0, int64_t(rows), int64_t(columns), ld}, SUCCESS;
}
int cublasLtMatmulPreferenceCreate(void** made) { return *made = new Object{PREFERENCE}, SUCCESS; }
int cublasLtMatmulPreferenceDestroy(void* made) { return delete &object(made), SUCCESS; }
int cublasLtMatmulDescSetAttribute(void* o, int n, const void* data, size_t size) { return set(o, DESCRIPTION, DESCRIPTION_BYTES, n, data, size); }
int cublasLtMatrixLayoutSetAttribute(void* o, int n, const void* data, size_t size) { return set(o, LAYOUT, LAYOUT_BYTES, n, data, size); }
int cublasLtMatmulPreferenceSetAttribute(void* o, int n, const void* data, size_t size) { return set(o, PREFERENCE, PREFERENCE_BYTES, n, data, size); }

int cublasLtMatmulAlgoGetHeuristic(void* handle, void* desc, void* a, void* b, void* c, void* d, void* wishes, int asked, Found* found, int* count) {
  *count = 0;
  if (!handle || object(handle).kind != HANDLE || asked < 1) return refuse(INVALID_VALUE, "no handle");
  const Object &how = object(desc), &wish = object(wishes), &la = object(a), &lb = object(b), &ld = object(d);
  int64_t epilogue = how.at(EPILOGUE, 1), bias = how.at(BIAS_POINTER);
  if (epilogue > largest_epilogue) return refuse(NOT_SUPPORTED, "no algorithm for this epilogue");
  if (needs_bias(epilogue) && !bias) return refuse(INVALID_VALUE, "the alignment of the bias is not known yet");
  if (wish.at(REDUCTION, 7) != 2) return refuse(INVALID_VALUE, "parts of sums may be added up in 16 bits");
  bool narrow = la.type == 2 || la.type == 14;
  if (la.type != lb.type || (ld.type != la.type && !(narrow && ld.type == 0)) || (la.type == 1) != (how.type == 70))
    return refuse(NOT_SUPPORTED, "these types do not go together");
  int64_t batch = ld.at(BATCH_COUNT, 1);
  if (la.at(BATCH_COUNT, 1) != batch || lb.at(BATCH_COUNT, 1) != batch) return refuse(INVALID_VALUE, "different numbers of matrices");
  std::memset(found, 0, sizeof *found);
  auto wanted = [&](int operand) { return wish.at(ALIGNMENT + operand, 256); };
  found->algorithm = {MAGIC, epilogue, wanted(0), wanted(1), wanted(3), alignment_of(bias), wish.at(WORKSPACE)};
  found->workspace = wish.at(WORKSPACE);
  *count = 1;
  return SUCCESS;
}

int cublasLtMatmul(void* handle, void* desc, const void* alpha, const void* a, void* la, const void* b, void* lb, const void* beta,
                   const void* c, void* lc, void* d, void* ld, const Algorithm* algorithm, void* workspace, size_t size, void* stream) {
  if (!handle || !algorithm || algorithm->magic != MAGIC) return refuse(INVALID_VALUE, "no algorithm");
  const Object& how = object(desc);
  auto address = [](const void* p) { return reinterpret_cast<int64_t>(p); };
  bool aligned = address(a) % algorithm->a == 0 && address(b) % algorithm->b == 0 && address(d) % algorithm->d == 0;
  if (!aligned) return refuse(INVALID_VALUE, "an operand is less aligned than was promised");
  int64_t bias = how.at(BIAS_POINTER);
  if (how.at(EPILOGUE, 1) != algorithm->epilogue) return refuse(INVALID_VALUE, "an algorithm for another epilogue");
  if (needs_bias(algorithm->epilogue) && (bias % 16 || bias % (algorithm->bias_alignment < 16 ? algorithm->bias_alignment : 16)))
    return refuse(INVALID_VALUE, "a bias that is not aligned to 16 bytes");
  if (!workspace || address(workspace) % 16 || int64_t(size) < algorithm->workspace) return refuse(INVALID_VALUE, "no workspace");
  bool doubles = how.scale == 1;
  if ((doubles ? *static_cast<const double*>(alpha) : *static_cast<const float*>(alpha)) != 1) return refuse(INVALID_VALUE, "alpha");
  if ((doubles ? *static_cast<const double*>(beta) : *static_cast<const float*>(beta)) != 0) return refuse(INVALID_VALUE, "beta");
  const char *left = static_cast<const char*>(a), *right = static_cast<const char*>(b);
  if (doubles) multiply<double>(how, left, object(la), right, object(lb), static_cast<char*>(d), object(ld));
  else multiply<float>(how, left, object(la), right, object(lb), static_cast<char*>(d), object(ld));
  return SUCCESS;
}

}  // extern "C"
