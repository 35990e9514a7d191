// Recursive-descent parser of Jinja: expressions in jinja_expressions.cc, statements in jinja_parser.cc.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/jinja_ast.h"
#include "runtime/text/jinja_lexer.h"

namespace latentmesh::jinja {

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}
  NodePtr Template();

 private:
  using Kind = Node::Kind;

  const Token& Peek(size_t ahead = 0) const;
  Token Next();
  bool LookingAt(Token::Kind kind, std::string_view text, size_t ahead = 0) const;
  bool IsOperator(std::string_view op) const { return LookingAt(Token::Kind::kOperator, op); }
  bool IsName(std::string_view name) const { return LookingAt(Token::Kind::kName, name); }
  bool AcceptOperator(std::string_view op);
  bool AcceptName(std::string_view name);
  void ExpectOperator(std::string_view op);
  std::string ExpectName();
  void ExpectBlockEnd();
  [[noreturn]] void Fail(const std::string& what) const;

  // A node at the current line; `Finish` checks that it is not nested too deeply.
  NodePtr Make(Kind kind, std::string text = "") const;
  NodePtr Finish(NodePtr node) const;
  template <typename... Children>
  NodePtr MakeWith(Kind kind, std::string text, Children... children) const {
    NodePtr node = Make(kind, std::move(text));
    (node->children.push_back(std::move(children)), ...);
    return Finish(std::move(node));
  }

  // Statements up to (not including) a block that starts with one of `ends`.
  NodePtr Body(std::initializer_list<std::string_view> ends);
  NodePtr Statement();
  NodePtr If();
  NodePtr For();
  NodePtr Set();
  NodePtr Macro();
  NodePtr With();
  NodePtr FilterBlock();
  NodePtr FilterChain();
  void End(std::string_view name);
  std::vector<std::string> Targets();

  NodePtr TupleOrExpression();
  NodePtr Expression();  // with the inline if
  NodePtr Or();
  NodePtr And();
  NodePtr Not();
  NodePtr Compare();
  NodePtr Sum();
  NodePtr Concat();
  NodePtr Product();
  NodePtr Power();
  NodePtr Unary(bool with_filters = true);
  NodePtr Primary();
  NodePtr Literal(const Token& token);
  NodePtr Parenthesized();
  NodePtr ListLiteral();
  NodePtr DictLiteral();
  NodePtr Postfix(NodePtr node);
  NodePtr Subscript(NodePtr node);
  NodePtr Filters(NodePtr node);
  NodePtr Filter(NodePtr node);
  NodePtr Test(NodePtr node);
  void CallArguments(Node& node);

  std::vector<Token> tokens_;
  size_t position_ = 0;
  int nesting_ = 0;
  int loops_ = 0;       // loops around the current statement, within the macro
  bool inner_ = false;  // inside a loop or macro, where no macro may be defined
};

}  // namespace latentmesh::jinja
