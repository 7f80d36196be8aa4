// PASSES: balance-scales{alpha=0.5}

// CHECK-LABEL: func.func @main
builtin.module attributes {mqc.level = "llm", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x4xf32> {
    %x = llm.embedding %ids {table = #mqc.weight<"table", "0", tensor<16x4xf32>>} : (tensor<?xi64>) -> tensor<?x4xf32>
    %e = llm.add %x, %x : (tensor<?x4xf32>, tensor<?x4xf32>) -> tensor<?x4xf32>

    /// a norm without gain gets one: the reciprocal of the scale that its users absorb
    // CHECK: %n = llm.rms_norm %e {eps = 1.000000e-05 : f64, gain = #mqc.weight<"n.gain"
    %n = llm.rms_norm %e {eps = 1.0e-05, groups = 1} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %g = llm.linear %n {weight = #mqc.weight<"wg", "0", tensor<6x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x6xf32>
    %s = llm.silu %g : (tensor<?x6xf32>) -> tensor<?x6xf32>

    /// the ungated side takes the scale of the product; ops themselves do not change
    // CHECK: %u = llm.linear %n {weight = #mqc.weight<"wu"
    // CHECK-NEXT: %m = llm.mul %s, %u : (tensor<?x6xf32>, tensor<?x6xf32>) -> tensor<?x6xf32>
    // CHECK-NEXT: %d = llm.linear %m {weight = #mqc.weight<"wd"
    // CHECK-NEXT: %y = llm.add %e, %d
    %u = llm.linear %n {weight = #mqc.weight<"wu", "0", tensor<6x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x6xf32>
    %m = llm.mul %s, %u : (tensor<?x6xf32>, tensor<?x6xf32>) -> tensor<?x6xf32>
    %d = llm.linear %m {weight = #mqc.weight<"wd", "0", tensor<4x6xf32>>} : (tensor<?x6xf32>) -> tensor<?x4xf32>
    %y = llm.add %e, %d : (tensor<?x4xf32>, tensor<?x4xf32>) -> tensor<?x4xf32>
    func.return %y : tensor<?x4xf32>
  }
}
