#!/usr/bin/env python3
"""What the quick start promises: the ConvNet reaches a test accuracy of 0.90 on Fashion-MNIST."""

import unittest

import harness


class Accuracy(harness.E2eTest):
    @unittest.skipUnless(harness.FASHION.is_dir(), f"needs {harness.FASHION}")
    def test_the_convnet_reaches_nine_in_ten(self):
        summary = self.run_to_end(harness.CONVNET, deadline_s=840)
        self.assertGreaterEqual(summary["test_accuracy"], 0.90)
        self.assertLessEqual(len(summary["epochs"]), 5)
        self.assertEqual(summary["pushes_acknowledged"], summary["pushes_applied"])


if __name__ == "__main__":
    harness.main()
