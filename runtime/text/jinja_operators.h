// Python's arithmetic on Jinja values.
#pragma once

#include <string>

#include "runtime/text/jinja_builtins.h"

namespace latentmesh::jinja {

// op is one of + - * / // % ** ~. Throws Error for operands that do not fit and for results that are too large.
Value Operate(const std::string& op, const Value& a, const Value& b, Budget& budget);
Value Negate(const Value& v);

}  // namespace latentmesh::jinja
