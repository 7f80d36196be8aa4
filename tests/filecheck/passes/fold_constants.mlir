// PASSES: fold-constants

// CHECK-LABEL: func.func @main
builtin.module attributes {mqc.level = "llm", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x4xf32> {
    /// into the factor of an embedding, and into a linear that it follows
    // CHECK: %x = llm.embedding %ids {factor = 8.000000e+00 : f64, table = #mqc.weight<"table"
    // CHECK-NEXT: %q = llm.linear %x
    // CHECK-NOT: llm.scale %q
    %x = llm.embedding %ids {table = #mqc.weight<"table", "0", tensor<16x4xf32>>} : (tensor<?xi64>) -> tensor<?x4xf32>
    %x.scale = llm.scale %x {factor = 8.0 : f64} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %q = llm.linear %x.scale {bias = #mqc.weight<"bq", "0", tensor<4xf32>>, weight = #mqc.weight<"wq", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %q.scale = llm.scale %q {factor = 0.125 : f64} : (tensor<?x4xf32>) -> tensor<?x4xf32>

    /// into the linears that use it, when what it scales has another user
    // CHECK: %s = llm.silu %q
    // CHECK-NEXT: %a = llm.linear %s
    // CHECK-NEXT: %b = llm.add %s, %a
    %s = llm.silu %q.scale : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %s.scale = llm.scale %s {factor = 3.0 : f64} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %a = llm.linear %s.scale {weight = #mqc.weight<"wa", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %b = llm.add %s, %a : (tensor<?x4xf32>, tensor<?x4xf32>) -> tensor<?x4xf32>

    /// a scale between two ops without weights stays
    // CHECK: %b.scale = llm.scale %b {factor = 2.500000e-01 : f64}
    %b.scale = llm.scale %b {factor = 0.25 : f64} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %c = llm.add %b, %b.scale : (tensor<?x4xf32>, tensor<?x4xf32>) -> tensor<?x4xf32>
    func.return %c : tensor<?x4xf32>
  }
}
