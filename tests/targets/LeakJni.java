/** A Java program whose JNI library leaks: 2,000 calls, 2 blocks of 90 bytes each time. */
public final class LeakJni {
    static native void leak(int count, int size);

    static void handle(int depth) {
        if (depth > 0) {
            handle(depth - 1);
        } else {
            leak(2, 90);
        }
    }

    static boolean waitForLine() throws java.io.IOException {
        int got;
        do {
            got = System.in.read();
        } while (got != '\n' && got >= 0);
        return got >= 0;
    }

    public static void main(String[] arguments) throws java.io.IOException {
        System.loadLibrary("leak_jni");
        System.out.println("ready");
        waitForLine();
        for (int request = 0; request < 2000; request++) {
            handle(request % 7);
        }
        System.out.println("truth {\"is_strict\":false,\"sites\":[{\"function\":\"site_jni_malloc\","
            + "\"outstanding_bytes\":360000,\"outstanding_count\":4000,"
            + "\"allocated_bytes\":360000,\"allocated_count\":4000}]}");
        while (waitForLine()) {
        }
    }
}
