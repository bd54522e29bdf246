// Renders a chat template with llama.cpp's own Jinja: llama_cpp_template TEMPLATE MESSAGES.json; see test_other_engines.py.

#include <fstream>
#include <iostream>
#include <sstream>

#include "jinja/caps.h"
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#include "jinja/value.h"
#include "json.h"

static std::string content(const char* path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

int main(int, char** arguments) {
  std::string source = content(arguments[1]);
  jinja::lexer lexer;
  auto tokens = lexer.tokenize(source);
  jinja::program program = jinja::parse_from_tokens(tokens);
  jinja::caps_get(program);
  jinja::context context(source);
  auto input = common_json::parse(content(arguments[2]));
  jinja::global_from_json(context, input, true);
  jinja::runtime runtime(context);
  auto parts = jinja::runtime::gather_string_parts(runtime.execute(program));
  for (auto& part : parts->as_string().parts) std::cout << part.val;
}
