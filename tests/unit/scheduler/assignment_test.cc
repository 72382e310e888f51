#include "scheduler/assignment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class AssignmentTest : public ::testing::Test {
 protected:
  AssignmentTest() {
    for (uint32_t i = 0; i < 3; ++i) {
      servers_[i].node = NodeId{10 + i};
      server_pointers_.push_back(&servers_[i]);
    }
    worker_.node = NodeId{20};
    worker_.incarnation = 4;
  }

  pb::TableSpec* AddDense(uint32_t id, uint32_t elements) {
    pb::TableSpec* table = tables_.add_table();
    table->set_id(id);
    table->set_partition_elements(4);
    table->add_tensor()->add_shape(elements);
    return table;
  }
  pb::TableSpec* AddSparse(uint32_t id, uint32_t partitions) {
    pb::TableSpec* table = tables_.add_table();
    table->set_id(id);
    table->mutable_sparse()->set_dim(8);
    table->mutable_sparse()->set_partitions(partitions);
    return table;
  }
  absl::StatusOr<pb::Assignment> Make() {
    return MakeAssignment(tables_, server_pointers_, {&worker_});
  }

  pb::Register tables_;
  Member servers_[3];
  std::vector<Member*> server_pointers_;
  Member worker_;
};

TEST_F(AssignmentTest, DealsThePartitionsOfAllTablesInTurn) {
  AddDense(0, 15);  // 4 partitions
  AddSparse(7, 4);
  const absl::StatusOr<pb::Assignment> assignment = Make();
  ASSERT_TRUE(assignment.ok()) << assignment.status();
  ASSERT_EQ(assignment->map().table_size(), 2);
  EXPECT_THAT(assignment->map().table(0).owner(), ElementsAre(0, 1, 2, 0));
  // Not from shard 0 again, or it would hold the remainder of every table.
  EXPECT_EQ(assignment->map().table(1).table(), 7u);
  EXPECT_THAT(assignment->map().table(1).owner(), ElementsAre(1, 2, 0, 1));
  EXPECT_EQ(assignment->map().shard(2).node(), 12u);
  EXPECT_THAT(assignment->worker_node(), ElementsAre(20u));
  EXPECT_THAT(assignment->worker_incarnation(), ElementsAre(4u));
  EXPECT_EQ(assignment->table(1).sparse().dim(), 8u);
}

TEST_F(AssignmentTest, RefusesTablesThatCannotBe) {
  AddSparse(1, 3);
  EXPECT_THAT(std::string(Make().status().message()), HasSubstr("a power of two"));
  tables_.clear_table();
  AddDense(1, 4);
  AddSparse(1, 4)->set_name("twin");
  EXPECT_THAT(std::string(Make().status().message()),
              HasSubstr("table 'twin': id 1 is another table's"));
}

}  // namespace
}  // namespace parley
