// TokenGrammars: grammars over bytes as constraints over a tokenizer's tokens.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "kernels/status.h"
#include "runtime/engine/request.h"

namespace latentmesh {

class Tokenizer;

// Thread-safe. Constraints from one TokenGrammars belong to one engine: what they share is used on its thread.
class TokenGrammars {
 public:
  explicit TokenGrammars(const Tokenizer& tokenizer);      // must outlive it, not the constraints
  ~TokenGrammars();

  Result<std::shared_ptr<const TokenConstraint>> JsonObject();
  // kInvalidArgument: the schema is wrong, or outside the subset of json_grammar.h.
  Result<std::shared_ptr<const TokenConstraint>> JsonSchema(const std::string& schema_json);
  // One of these again, by its source(): for another process with the same tokenizer.
  Result<std::shared_ptr<const TokenConstraint>> FromSource(const std::string& source);

 private:
  struct Vocabulary;
  class Compiled;
  class Constraint;
  Result<std::shared_ptr<const TokenConstraint>> Get(const std::string& key);

  std::shared_ptr<const Vocabulary> vocabulary_;
  std::mutex mutex_;
  std::list<std::pair<std::string, std::shared_ptr<Compiled>>> recent_;      // the latest in front
};

}  // namespace latentmesh
