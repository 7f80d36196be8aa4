// PASSES: rotate-channels

// CHECK-LABEL: func.func @main
builtin.module attributes {mqc.level = "llm", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x6xf32> {
    /// what gives or reads the stream and a norm without gain gets other weights; ops do not change
    // CHECK-NOT: <"table", "[[TABLE:0]]"
    // CHECK: %x = llm.embedding %ids {table = #mqc.weight<"table", "
    // CHECK-NEXT: %n = llm.rms_norm %x {eps = 1.000000e-05 : f64, groups = 1 : i64}
    %x = llm.embedding %ids {table = #mqc.weight<"table", "0", tensor<16x4xf32>>} : (tensor<?xi64>) -> tensor<?x4xf32>
    %n = llm.rms_norm %x {eps = 1.0e-05, groups = 1} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %u = llm.linear %n {weight = #mqc.weight<"wu", "0", tensor<6x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x6xf32>

    /// a norm that keeps its gain keeps its values from turning
    // CHECK: gain = #mqc.weight<"gain"
    %m = llm.rms_norm %u {eps = 1.0e-05, groups = 1, gain = #mqc.weight<"gain", "0", tensor<6xf32>>} : (tensor<?x6xf32>) -> tensor<?x6xf32>
    // CHECK-NEXT: %y = llm.linear %m {weight = #mqc.weight<"wd"
    %y = llm.linear %m {weight = #mqc.weight<"wd", "0", tensor<6x6xf32>>} : (tensor<?x6xf32>) -> tensor<?x6xf32>

    /// a matrix that is the table too turns as the table does, and stays one with it
    // CHECK: %s = llm.embedding %ids {table = #mqc.weight<"tied", "[[TIED:.+]]", tensor
    // CHECK: %p = llm.linear %b {weight = #mqc.weight<"basis", "{{[0-9a-f]+}}"
    // CHECK-NEXT: %l = llm.linear %p {weight = #mqc.weight<"tied", "[[TIED]]"
    %s = llm.embedding %ids {table = #mqc.weight<"tied", "0", tensor<6x4xf32>>} : (tensor<?xi64>) -> tensor<?x4xf32>
    %b = llm.rms_norm %s {eps = 1.0e-05, groups = 1} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %p = llm.linear %b {weight = #mqc.weight<"basis", "0", tensor<4x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x4xf32>
    %l = llm.linear %p {weight = #mqc.weight<"tied", "0", tensor<6x4xf32>>} : (tensor<?x4xf32>) -> tensor<?x6xf32>
    %z = llm.add %y, %l : (tensor<?x6xf32>, tensor<?x6xf32>) -> tensor<?x6xf32>
    func.return %z : tensor<?x6xf32>
  }
}
