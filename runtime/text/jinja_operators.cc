#include "runtime/text/jinja_operators.h"

#include <cmath>

namespace latentmesh::jinja {
namespace {

constexpr size_t kMaxRepeated = 1 << 20;  // bytes or elements that '*' may make

[[noreturn]] void Mismatch(const std::string& op, const Value& a, const Value& b) {
  for (const Value* v : {&a, &b})
    if (v->is_undefined()) throw Error(v->undefined_name());
  throw Error("operator '" + op + "' does not apply to " + a.TypeName() + " and " + b.TypeName());
}

int64_t Whole(const Value& v) { return v.if_int() ? *v.if_int() : int64_t{*v.if_bool()}; }

int64_t IntegerPower(int64_t base, int64_t exponent) {
  int64_t result = 1;
  if (exponent > 63 && base != 0 && base != 1 && base != -1) throw Error("a number is too large");
  for (int64_t i = 0; i < (exponent > 63 ? 62 + exponent % 2 : exponent); ++i) {
    if (__builtin_mul_overflow(result, base, &result)) throw Error("a number is too large");
  }
  return result;
}

// Python rounds the quotient towards minus infinity.
int64_t FloorDivide(int64_t a, int64_t b) {
  if (b == 0) throw Error("division by zero");
  if (b == -1) {
    if (a == INT64_MIN) throw Error("a number is too large");
    return -a;
  }
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

Value IntegerResult(const std::string& op, int64_t a, int64_t b) {
  int64_t out = 0;
  bool overflow = false;
  if (op == "+") overflow = __builtin_add_overflow(a, b, &out);
  else if (op == "-") overflow = __builtin_sub_overflow(a, b, &out);
  else if (op == "*") overflow = __builtin_mul_overflow(a, b, &out);
  else if (op == "//") out = FloorDivide(a, b);
  else if (op == "%") out = b == -1 ? 0 : a - FloorDivide(a, b) * b;
  else out = IntegerPower(a, b);
  if (overflow) throw Error("a number is too large");
  return out;
}

Value RealResult(const std::string& op, double a, double b) {
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "**") return std::pow(a, b);
  if (b == 0) throw Error("division by zero");
  if (op == "/") return a / b;
  const double floor = std::floor(a / b);
  return op == "//" ? floor : a - floor * b;
}

Value Repeat(const Value& sequence, int64_t count, Budget& budget) {
  const size_t times = count > 0 ? static_cast<size_t>(count) : 0;
  const size_t size = sequence.if_string() ? sequence.if_string()->size() : sequence.if_list()->items.size();
  if (size != 0 && times > kMaxRepeated / size) throw Error("'*' makes too large a value");
  budget.ChargeSize(size * times);
  std::string text;
  std::vector<Value> items;
  for (size_t i = 0; size != 0 && i < times; ++i) {
    if (const std::string* s = sequence.if_string()) text += *s;
    else items.insert(items.end(), sequence.if_list()->items.begin(), sequence.if_list()->items.end());
  }
  return sequence.if_string() ? Value(std::move(text)) : Value::MakeList(std::move(items), sequence.if_list()->tuple);
}

Value Add(const Value& a, const Value& b, Budget& budget) {
  if (a.if_string() && b.if_string()) {
    budget.ChargeSize(a.if_string()->size() + b.if_string()->size());
    return *a.if_string() + *b.if_string();
  }
  if (!a.if_list() || !b.if_list() || a.if_list()->tuple != b.if_list()->tuple) Mismatch("+", a, b);
  std::vector<Value> items = a.if_list()->items;
  items.insert(items.end(), b.if_list()->items.begin(), b.if_list()->items.end());
  budget.ChargeSize(items.size() * 16);
  return Value::MakeList(std::move(items), a.if_list()->tuple);
}

}  // namespace

Value Operate(const std::string& op, const Value& a, const Value& b, Budget& budget) {
  if (op == "~") {
    std::string text = ToText(a) + ToText(b);
    budget.ChargeSize(text.size());
    return text;
  }
  if (a.is_number() && b.is_number()) {
    const bool real = a.if_float() || b.if_float() || op == "/" || (op == "**" && b.AsDouble() < 0);
    return real ? RealResult(op, a.AsDouble(), b.AsDouble()) : IntegerResult(op, Whole(a), Whole(b));
  }
  if (op == "+") return Add(a, b, budget);
  if (op == "*") {
    const bool left = a.if_string() || a.if_list(), right = b.if_string() || b.if_list();
    if (left && (b.if_int() || b.if_bool())) return Repeat(a, Whole(b), budget);
    if (right && (a.if_int() || a.if_bool())) return Repeat(b, Whole(a), budget);
  }
  if (op == "%" && a.if_string()) throw Error("unsupported string formatting with '%'");
  Mismatch(op, a, b);
}

Value Negate(const Value& v) {
  if (const double* d = v.if_float()) return -*d;
  if (!v.is_number())
    throw Error(v.is_undefined() ? v.undefined_name() : std::string("cannot negate a ") + v.TypeName());
  return IntegerResult("-", 0, Whole(v));
}

}  // namespace latentmesh::jinja
