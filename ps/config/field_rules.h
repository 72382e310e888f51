// What each field of an experiment may hold on its own, as one table; what fields must be to each
// other is in validate.h. Pure, thread-safe.
#ifndef PARLEY_PS_CONFIG_FIELD_RULES_H_
#define PARLEY_PS_CONFIG_FIELD_RULES_H_

#include <google/protobuf/descriptor.h>

#include <string>
#include <vector>

namespace parley {

// A range of a numeric field; infinite ends are open by nature.
struct FieldRule {
  const char* field;  // full name: "parley.pb.Cluster.servers"
  double min, max;
  bool min_open = false, max_open = false;
  bool required = false;  // has no default and must be given

  bool Allows(double value) const;  // false for NaN and infinities
  std::string Allowed() const;      // "1..1024", "> 0", "[0, 1)"
};

// Null if there is none.
const FieldRule* FindFieldRule(const google::protobuf::FieldDescriptor& field);

// What may stand after "allowed: " for a field: its range, the names of its enum, or its type.
std::string AllowedValues(const google::protobuf::FieldDescriptor& field);

// The names of a message's fields and of an enum's values, in the order of the .proto file.
std::vector<std::string> FieldNames(const google::protobuf::Descriptor& message);
std::vector<std::string> EnumNames(const google::protobuf::EnumDescriptor& type);

}  // namespace parley

#endif  // PARLEY_PS_CONFIG_FIELD_RULES_H_
