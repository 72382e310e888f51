// Protobuf text format -> experiment, with errors made for people. Pure, thread-safe.
#ifndef PARLEY_PS_CONFIG_PARSE_TEXT_H_
#define PARLEY_PS_CONFIG_PARSE_TEXT_H_

#include <string>
#include <vector>

#include "proto/experiment.pb.h"
#include "ps/config/source_map.h"

namespace parley {

// Fills `experiment` and the map's tree. Returns one line per error,
// "file:line:col: field 'x': what is wrong; allowed: ...": every unknown field, and the first of
// what else keeps the text from being read (a wrong type, a bad enum, a missing brace).
std::vector<std::string> ParseExperimentText(const std::string& text, SourceMap* source,
                                             pb::Experiment* experiment);

}  // namespace parley

#endif  // PARLEY_PS_CONFIG_PARSE_TEXT_H_
